"""Messages of any protobuf type, filled by its descriptor: nonsense most of the time, and near the bounds of sense."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]
Overrides = Mapping[str, Strategy]
MAX_DEPTH = 4

_SIGNED = st.sampled_from([0, 1, -1, 31, 32, 1000, 1001, (1 << 31) - 1, -(1 << 31)]) | st.integers(-(1 << 31), 1000)
_UNSIGNED = st.sampled_from([0, 1, 0o7777, 0o10000, (1 << 32) - 1]) | st.integers(0, 1000)
_TEXTS = st.sampled_from(["", "a", "..", "/", "/mnt/data/a", "a/../..", "é", "a\0b", "\n", "x" * 300, "y/" * 3000])
_SCALARS: dict[int, Strategy] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40) | st.just(bytes(32)),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 20) | st.sampled_from([(1 << 31) - 1, -(1 << 31)]),
    FieldDescriptor.TYPE_INT32: _SIGNED,
    FieldDescriptor.TYPE_INT64: _SIGNED | st.sampled_from([(1 << 63) - 1, -(1 << 63), 315_576_000_000]),
    FieldDescriptor.TYPE_STRING: _TEXTS | st.text(max_size=20),
    FieldDescriptor.TYPE_UINT32: _UNSIGNED,
    FieldDescriptor.TYPE_UINT64: _UNSIGNED | st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, overrides: Overrides = {}, depth: int = 0) -> Any:  # noqa: B006
    """overrides: strategies by the name of a field, wherever it is; None leaves it out."""
    message = message_factory.GetMessageClass(descriptor)()
    fields = [field for field in descriptor.fields if depth < MAX_DEPTH or field.type != FieldDescriptor.TYPE_MESSAGE]
    chosen = st.lists(st.sampled_from(fields), unique_by=lambda field: field.name) if fields else st.just([])
    for field in draw(chosen | st.just(fields)):
        _fill(draw, message, field, overrides, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, overrides: Overrides, depth: int) -> None:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        kind = field.message_type
        if kind.GetOptions().map_entry:
            names, values = (_SCALARS[kind.fields_by_name[one].type] for one in ("key", "value"))
            getattr(message, field.name).update(draw(st.dictionaries(names, values, max_size=3)))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(messages(kind, overrides, depth + 1), max_size=3)))
        else:
            getattr(message, field.name).CopyFrom(draw(messages(kind, overrides, depth + 1)))
        return
    scalar = overrides.get(field.name, _SCALARS[field.type])
    if field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(scalar, max_size=5)))
    elif (value := draw(scalar)) is not None:
        setattr(message, field.name, value)
