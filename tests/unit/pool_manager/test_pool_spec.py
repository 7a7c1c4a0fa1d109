"""Settings of pools: defaults, limits, updates."""

import pytest
from google.protobuf import duration_pb2, field_mask_pb2

from pool_manager import pool_spec, ulid
from sandpool.v1 import pool_pb2 as pb
from service_kit.errors import InvalidArgument, SandpoolError, Unimplemented


def test_every_default_is_filled_in_and_stays() -> None:
    spec = pool_spec.complete(pb.PoolSpec())
    assert (spec.ready_target, spec.max_sessions, spec.cooldown.seconds) == (2, 100, 300)
    assert (spec.resources.vcpus, spec.resources.memory_bytes, spec.template.builtin) == (1, 512 << 20, "python")
    assert pool_spec.complete(spec) == spec


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (pb.PoolSpec(ready_target=1001), "spec.ready_target"),
        (pb.PoolSpec(max_sessions=0), "spec.max_sessions"),
        (pb.PoolSpec(cooldown=duration_pb2.Duration(nanos=1)), "spec.cooldown"),
        (pb.PoolSpec(max_lifetime=duration_pb2.Duration(seconds=31 * 86400)), "spec.max_lifetime"),
        (pb.PoolSpec(resources=pb.Resources(vcpus=33)), "spec.resources.vcpus"),
        (pb.PoolSpec(resources=pb.Resources(memory_bytes=(512 << 20) + 1)), "spec.resources.memory_bytes"),
        (pb.PoolSpec(template=pb.TemplateSource(builtin="../x")), "spec.template.builtin"),
    ],
)
def test_what_is_out_of_bounds_names_its_field(spec: pb.PoolSpec, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pool_spec.complete(spec)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "spec",
    [
        pb.PoolSpec(template=pb.TemplateSource(container_image="x")),
        pb.PoolSpec(network=pb.Network(egress=pb.EGRESS_ENABLED)),
    ],
)
def test_what_is_not_built_says_so(spec: pb.PoolSpec) -> None:
    with pytest.raises(Unimplemented):
        pool_spec.complete(spec)


def test_an_update_changes_what_the_mask_names_and_knows_a_new_generation() -> None:
    old = pool_spec.complete(pb.PoolSpec(ready_target=7))
    new = pb.PoolSpec(ready_target=3, max_sessions=9, resources=pb.Resources(vcpus=2))
    merged, generation = pool_spec.update(old, new, field_mask_pb2.FieldMask(paths=["ready_target"]))
    assert (merged.ready_target, merged.max_sessions, merged.resources.vcpus, generation) == (3, 100, 1, False)
    merged, generation = pool_spec.update(old, new, field_mask_pb2.FieldMask(paths=["resources.vcpus"]))
    assert (merged.ready_target, merged.resources.vcpus, generation) == (7, 2, True)
    merged, generation = pool_spec.update(old, pb.PoolSpec(), field_mask_pb2.FieldMask(paths=["ready_target"]))
    assert (merged.ready_target, generation) == (2, False)


@pytest.mark.parametrize("paths", [[], ["nonsense"], ["resources.nonsense"]])
def test_a_mask_that_names_nothing_is_refused(paths: list[str]) -> None:
    with pytest.raises(SandpoolError):
        pool_spec.update(pool_spec.complete(pb.PoolSpec()), pb.PoolSpec(), field_mask_pb2.FieldMask(paths=paths))


@pytest.mark.parametrize("identifier", ["", "a" * 129, "a b", "ä", "a\n", "a\0"])
def test_identifiers_are_those_of_azure(identifier: str) -> None:
    with pytest.raises(InvalidArgument):
        pool_spec.check_identifier(identifier)
    assert pool_spec.check_identifier("A-z_0|}{[]:\"';<>?/.,@#$%^&*()+=!~`")


def test_ulids_sort_by_time() -> None:
    assert ulid.encode(0, bytes(10)) == "0" * 26
    assert ulid.encode((1 << 48) - 1, b"\xff" * 10) == "7" + "z" * 25
    assert ulid.encode(1, b"\xff" * 10) < ulid.encode(2, bytes(10))
