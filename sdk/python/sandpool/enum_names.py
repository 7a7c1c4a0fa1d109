"""Names of enum values as people read them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor


def short_name(kind: EnumDescriptor, number: int) -> str:
    """Without the prefix that all of its enum have; of a value that only a later version knows, the number itself."""
    value = kind.values_by_number.get(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix) if value is not None else str(number)
