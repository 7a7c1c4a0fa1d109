"""A guest that does something of its own: the image's initramfs with another first program."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from node_agent.vmm import GuestAddress

# It waits long enough to be frozen, and not so long that its clone, whose clock jumps ahead, is waited for.
SCRIPT = """#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
echo waiting-to-be-frozen >/dev/console
sleep 10
{deed}
"""


def with_init(initramfs: Path, deed: str, work: Path) -> Path:
    """A copy whose first program does deed: the kernel unpacks archives one after the other."""
    (work / "init").write_text(SCRIPT.format(deed=deed))
    (work / "init").chmod(0o755)
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
    archive = subprocess.run(command, cwd=work, input=b"init\n", capture_output=True, check=True).stdout
    (work / "initramfs").write_bytes(initramfs.read_bytes() + archive)
    return work / "initramfs"


async def until_it_waits(address: GuestAddress) -> None:
    """As quiesce."""
    console = Path(address.paths[0]).with_name("console")
    while b"waiting-to-be-frozen" not in console.read_bytes():  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # a file that grows makes no event
