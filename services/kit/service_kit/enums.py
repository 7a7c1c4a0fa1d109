"""Names of enum values that other processes send: those may be of a later version than this one. Pure."""

from google.protobuf.descriptor import EnumDescriptor


def name(kind: EnumDescriptor, number: int) -> str:
    """As in the proto; the number itself, of a value that is not known here."""
    value = kind.values_by_number.get(number)
    return value.name if value is not None else str(number)
