"""Whether memory is mapped as it should be, on what the kernel says of real clones."""

import pytest

from node_agent.drivers.cloud_hypervisor.mapping import WrongMapping, check_private

REST = """563a81251000-563a81c0a000 r-xp 00001000 fe:00 1234                       /usr/bin/cloud hypervisor
7ffca1ac0000-7ffca1ae1000 rw-p 00000000 00:00 0                          [stack]
"""
PRIVATE = "7f0000000000-7f0020000000 rw-p 00000000 00:19 77   /tmp/a template/memory\n"
SIZE = 0x20000000


def test_all_of_the_file_mapped_privately_is_a_clone() -> None:
    check_private(REST + PRIVATE, 77, SIZE)
    halves = PRIVATE.replace("7f0020000000", "7f0010000000") + PRIVATE.replace("7f0000000000", "7f0010000000")
    check_private(halves + REST, 77, SIZE)


@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (REST, "0 bytes"),
        (REST + PRIVATE.replace("rw-p", "rw-s"), "mapped rw-s"),
        (REST + PRIVATE + PRIVATE.replace("rw-p", "r--s"), "mapped r--s"),
        (REST + PRIVATE.replace("7f0020000000", "7f0010000000"), "268435456 bytes"),
        (REST + PRIVATE.replace(" 77 ", " 78 "), "0 bytes"),
        ("", "0 bytes"),
    ],
)
def test_anything_else_is_not(maps: str, said: str) -> None:
    with pytest.raises(WrongMapping, match=said):
        check_private(maps, 77, SIZE)
