"""The settings of a pool: defaults, limits, and what a change of them means. Pure."""

import re

from google.protobuf import duration_pb2, field_mask_pb2

from sandpool.v1 import pool_pb2 as pb
from service_kit.errors import InvalidArgument, Unimplemented

NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
IDENTIFIER = re.compile(r"""[A-Za-z0-9_|}{\[\]:"';<>?/.,@#$%^&*()\-+=!~`]{1,128}""")
BUILTIN = re.compile(r"[a-z][a-z0-9-]{0,62}")
MIB = 1 << 20
DAY = 86_400
# Paths of PoolSpec whose change makes VMs of before unfit.
GENERATION_FIELDS = ("template", "resources", "network", "background_is_activity")


def check_name(name: str, field: str = "name") -> str:
    """A pool's name. Raises InvalidArgument."""
    if not NAME.fullmatch(name):
        raise InvalidArgument("INVALID_FIELD", "must match [a-z][a-z0-9-]{0,62}", field=field)
    return name


def check_identifier(identifier: str, field: str = "session.identifier") -> str:
    """A session's identifier. Raises InvalidArgument."""
    if not IDENTIFIER.fullmatch(identifier):
        raise InvalidArgument("INVALID_FIELD", "1 to 128 of the characters that SessionRef names", field=field)
    return identifier


def complete(spec: pb.PoolSpec) -> pb.PoolSpec:
    """A checked copy with every default filled in. Raises InvalidArgument, Unimplemented."""
    done = pb.PoolSpec()
    done.CopyFrom(spec)
    if not done.template.WhichOneof("source"):
        done.template.builtin = "python"
    if done.template.WhichOneof("source") != "builtin":
        raise Unimplemented("UNIMPLEMENTED", "only built-in images so far", field="spec.template.container_image")
    if not BUILTIN.fullmatch(done.template.builtin):
        raise InvalidArgument("INVALID_FIELD", "no such built-in image", field="spec.template.builtin")
    if done.network.egress == pb.EGRESS_ENABLED:
        raise Unimplemented("UNIMPLEMENTED", "sessions have no network so far", field="spec.network.egress")
    done.network.egress = pb.EGRESS_DISABLED
    _number(done, "ready_target", 2, 0, 1000)
    _number(done, "max_sessions", 100, 1, 100_000)
    _duration(done, "cooldown", 300, 1, DAY)
    _duration(done, "max_lifetime", DAY, 1, 30 * DAY)
    _resource(done.resources, "vcpus", 1, 1, 32)
    _resource(done.resources, "memory_bytes", 512 * MIB, 256 * MIB, 64 << 30)
    _resource(done.resources, "disk_bytes", 2 << 30, 256 * MIB, 1 << 40)
    _resource(done.resources, "max_processes", 256, 16, 32_768)
    if done.resources.memory_bytes % (2 * MIB):
        raise InvalidArgument("INVALID_FIELD", "must be a multiple of 2 MiB", field="spec.resources.memory_bytes")
    if not done.HasField("background_is_activity"):
        done.background_is_activity = True
    return done


def update(old: pb.PoolSpec, new: pb.PoolSpec, mask: field_mask_pb2.FieldMask) -> tuple[pb.PoolSpec, bool]:
    """old with the fields that mask names taken from new, and whether that makes a new generation.

    Raises InvalidArgument, Unimplemented.
    """
    if not mask.paths:
        raise InvalidArgument("INVALID_FIELD", "names no field", field="update_mask")
    if not mask.IsValidForDescriptor(pb.PoolSpec.DESCRIPTOR):
        raise InvalidArgument("INVALID_FIELD", "names a field that PoolSpec has not", field="update_mask")
    merged = pb.PoolSpec()
    merged.CopyFrom(old)
    for path in mask.paths:  # an unset field in new goes back to its default
        _clear(merged, path)
    mask.MergeMessage(new, merged, True, True)
    merged = complete(merged)
    anew = any(getattr(old, name) != getattr(merged, name) for name in GENERATION_FIELDS)
    # Nodes end VMs at the lifetime that these were made with.
    return merged, anew or merged.max_lifetime.ToNanoseconds() > old.max_lifetime.ToNanoseconds()


def _clear(spec: pb.PoolSpec, path: str) -> None:
    *parents, last = path.split(".")
    message = spec
    for name in parents:
        message = getattr(message, name)
    message.ClearField(last)  # type: ignore[arg-type]


def _number(spec: pb.PoolSpec, name: str, default: int, low: int, high: int) -> None:
    if not spec.HasField(name):  # type: ignore[arg-type]
        setattr(spec, name, default)
    if not low <= getattr(spec, name) <= high:
        raise InvalidArgument("INVALID_FIELD", f"must be {low} to {high}", field=f"spec.{name}")


def _resource(resources: pb.Resources, name: str, default: int, low: int, high: int) -> None:
    value = getattr(resources, name) or default
    if not low <= value <= high:
        raise InvalidArgument("INVALID_FIELD", f"must be {low} to {high}", field=f"spec.resources.{name}")
    setattr(resources, name, value)


def _duration(spec: pb.PoolSpec, name: str, default: int, low: int, high: int) -> None:
    duration: duration_pb2.Duration = getattr(spec, name)
    if not spec.HasField(name):  # type: ignore[arg-type]
        duration.FromSeconds(default)
    if not low <= duration.ToNanoseconds() / 1e9 <= high:
        raise InvalidArgument("INVALID_FIELD", f"must be {low} s to {high} s", field=f"spec.{name}")
