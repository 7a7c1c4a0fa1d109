"""VM directories and their records on disk: what an agent finds again after kill -9.

Nothing is synced: what a crash of the host could lose, it has killed as well.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from node_agent.vm_record import VmRecord

RECORD_FILE = "vm.json"
# Ids that have lived and died, newest last: a repeated CreateVm must not revive one.
KEPT_GONE = 1000


class Journal:
    """STATE/vms has a directory per VM, STATE/gone a record per VM that is no more."""

    def __init__(self, state_dir: Path) -> None:
        self.vms = state_dir / "vms"
        self._gone = state_dir / "gone"
        for directory in (self.vms, self._gone):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def directory(self, vm_id: str) -> Path:
        """Where the files of a VM are."""
        return self.vms / vm_id

    def write(self, record: VmRecord) -> None:
        """Make the directory if there is none, and replace the record atomically."""
        directory = self.directory(record.vm_id)
        directory.mkdir(mode=0o700, exist_ok=True)
        part = directory / f"{RECORD_FILE}.part"
        part.write_text(record.to_json())
        part.rename(directory / RECORD_FILE)

    def bury(self, record: VmRecord) -> None:
        """Remember the end, then forget the rest. In this order: an id never looks as if it had not lived."""
        with suppress(OSError):  # on a full disk it is remembered until the agent ends
            (self._gone / record.vm_id).write_text(record.to_json())
        shutil.rmtree(self.directory(record.vm_id), ignore_errors=True)

    def forget(self, vm_id: str) -> None:
        """One that has died, and is no longer among the latest."""
        with suppress(OSError):  # then the next start of an agent does
            (self._gone / vm_id).unlink()

    def bury_directory(self, directory: Path) -> None:
        """Remove a directory that has no readable record."""
        shutil.rmtree(directory, ignore_errors=True)

    def living(self) -> Iterator[tuple[Path, VmRecord | None]]:
        """Every VM directory with its record; None where there is no readable one."""
        for directory in sorted(self.vms.iterdir()):
            try:
                record = VmRecord.from_json((directory / RECORD_FILE).read_text())
            except (OSError, ValueError, TypeError):
                yield directory, None
            else:
                yield directory, record

    def gone(self) -> list[VmRecord]:
        """Those that have died, oldest first; forgets all but the latest KEPT_GONE."""
        paths = sorted(self._gone.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in paths[:-KEPT_GONE]:
            path.unlink()
        records = []
        for path in paths[-KEPT_GONE:]:
            with suppress(OSError, ValueError, TypeError):
                records.append(VmRecord.from_json(path.read_text()))
        return records


def read_or_make(path: Path, value: str) -> str:
    """The JSON string in a small file, made with value if it is not there."""
    if not path.exists():
        path.write_text(json.dumps(value))
    return str(json.loads(path.read_text()))
