"""How memory is shared out; the groups themselves need the kernel of a VM."""

from guest_agent.cgroup import LEAST_ROOM, MARGIN_BYTES, room_bytes

MEGABYTE = 1 << 20
STAT = f"anon {100 * MEGABYTE}\nfile {90 * MEGABYTE}\nkernel {10 * MEGABYTE}\nshmem {40 * MEGABYTE}\nanon_thp 5\n"


def test_a_command_may_use_what_cannot_be_taken_from_others() -> None:
    assert room_bytes(400 * MEGABYTE, STAT) == 250 * MEGABYTE - MARGIN_BYTES


def test_a_command_always_has_its_least_share() -> None:
    assert room_bytes(160 * MEGABYTE, STAT) == 160 * MEGABYTE // LEAST_ROOM
