"""What a bundle was frozen from, and its files. A template and a hibernated VM are the same to whoever clones them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.vmm import Image, MachineSpec

# In a bundle, and in the directory of each clone too, which can become a bundle of its own.
FROZEN_FILE = "image.json"


@dataclass(frozen=True)
class Frozen:
    """What a VM was booted from and with: a clone of it needs the same."""

    image: Image
    machine: MachineSpec
    acceleration: str

    def to_json(self) -> str:
        """For the file."""
        image = {name: str(value) for name, value in asdict(self.image).items()}
        return json.dumps({"image": image, "machine": asdict(self.machine), "acceleration": self.acceleration})

    @classmethod
    def from_json(cls, text: str) -> "Frozen":
        """From the file. Raises ValueError, KeyError, TypeError."""
        values = json.loads(text)
        image_id = values["image"].pop("image_id")
        paths = {name: Path(value) for name, value in values["image"].items()}
        return cls(Image(**paths, image_id=image_id), MachineSpec(**values["machine"]), values["acceleration"])


def read(bundle: Path, machine: MachineSpec) -> Frozen:
    """Of a bundle to be cloned for such a machine. Raises OSError, ValueError, KeyError, TypeError."""
    frozen = Frozen.from_json((bundle / FROZEN_FILE).read_text())
    if frozen.machine != machine:
        raise ValueError("it was frozen on another machine")
    # QEMU makes up memory that is missing, and waits for ever for a state that is.
    if (bundle / "memory").stat().st_size != machine.memory_bytes:
        raise ValueError("its memory has another size")
    if (bundle / "state").stat().st_size == 0:
        raise ValueError("its state is empty")
    return frozen


def seal(bundle: Path, frozen: Frozen) -> None:
    """Complete: nothing of it changes any more. Raises OSError."""
    (bundle / FROZEN_FILE).write_text(frozen.to_json())
    for path in bundle.iterdir():
        # QEMU opens even memory that it maps privately for writing.
        path.chmod(0o600 if path.name == "memory" else 0o400)
