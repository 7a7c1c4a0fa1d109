"""What runs a guest's instructions under QEMU: KVM where a boot has proven it, software emulation else."""

import asyncio
from pathlib import Path

from node_agent.drivers.proof import CMDLINE, DEVICE, MARK, Proof, Prover
from node_agent.drivers.qemu.command import PROGRAM, cpu
from node_agent.vmm import Acceleration

VERDICT_FILE = "acceleration.json"
# With KVM a kernel needs one or two.
BOOT_SECONDS = 10


class Probe:
    """The choice of one driver object, made once."""

    def __init__(self, cache: Path | None, device: Path = DEVICE) -> None:
        self._proof = Proof(cache, Prover(VERDICT_FILE, version, lambda image: boot_failure("kvm", image)), device)

    async def acceleration(self) -> Acceleration:
        """KVM if it is proven, else emulation and why."""
        failure = await self._proof.failure()
        if failure is None:
            return Acceleration("emulation", "KVM is not proven yet: no guest image has been built")
        return Acceleration("emulation", failure) if failure else Acceleration("kvm", "boots a guest")


async def boot_failure(acceleration: str, image: Path, seconds: float = BOOT_SECONDS) -> str:
    """Boot the image's kernel up to its first program. Returns why that failed, or nothing at all."""
    # Not even our own end may leave it running.
    command = ["timeout", "--signal=KILL", str(seconds), PROGRAM, "-M", "q35", "-nodefaults", "-nographic"]
    command += ["-no-reboot", *cpu(acceleration), "-smp", "2", "-m", "256M", "-serial", "stdio"]
    command += ["-kernel", str(image / "vmlinux"), "-initrd", str(image / "initramfs"), "-append", CMDLINE]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        console, complaint = await process.communicate()
    except BaseException:
        process.terminate()
        await process.wait()
        raise
    if MARK.encode() in console:
        return ""
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"nothing ran within {seconds} s"


async def version() -> str:
    """What the QEMU of this host calls itself. Raises OSError."""
    process = await asyncio.create_subprocess_exec(PROGRAM, "--version", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode(errors="replace").partition("\n")[0]
