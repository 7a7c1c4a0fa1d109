"""What a clone is made from is checked before a VMM sees it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from node_agent.drivers.cloud_hypervisor.bundle import BadBundle, Bundle, read_json, take_back
from node_agent.drivers.cloud_hypervisor.config import BadConfig
from node_agent.drivers.cloud_hypervisor.probe import Version
from node_agent.vmm import MachineSpec

MACHINE = MachineSpec(1, 4096, 8192)
BUNDLE = Bundle("v53.0", Path("/images/root"), {"cpus": {}})


def put(directory: Path, memory: int = 4096, scratch: int = 8192) -> None:
    BUNDLE.write(directory)
    for name, size in (("memory", memory), ("scratch", scratch)):
        (directory / name).touch()
        os.truncate(directory / name, size)


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    put(tmp_path)
    assert Bundle.read(tmp_path) == BUNDLE
    Bundle.read(tmp_path).check(tmp_path, MACHINE, Version(53, 1))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"version": "v53.0"}', '{"version": 1, "root": "r", "config": 7}']
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(BadBundle, match="is damaged"):
        Bundle.read(tmp_path)


def test_what_another_vmm_or_machine_left_is_refused(tmp_path: Path) -> None:
    put(tmp_path)
    with pytest.raises(BadBundle, match=r"frozen by Cloud Hypervisor v53\.0, and this is v54\.0"):
        BUNDLE.check(tmp_path, MACHINE, Version(54, 0))
    put(tmp_path, memory=4095)
    with pytest.raises(BadBundle, match="memory has another size"):
        BUNDLE.check(tmp_path, MACHINE, Version(53, 0))
    put(tmp_path, scratch=1)
    with pytest.raises(BadBundle, match="scratch has another size"):
        BUNDLE.check(tmp_path, MACHINE, Version(53, 0))


async def test_a_vmm_gets_nothing_read_or_moved_but_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('"secret"')
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(BadBundle):
            await take_back(tmp_path / name, tmp_path / "taken")
        with pytest.raises((BadConfig, OSError)):
            read_json(tmp_path / name)
    assert json.loads((tmp_path / "secret").read_text()) == "secret" and not (tmp_path / "taken").exists()


async def test_zeros_are_dug_out_of_what_was_taken(tmp_path: Path) -> None:
    (tmp_path / "saved").write_bytes(bytes(1 << 20) + b"x" * 4096)
    await take_back(tmp_path / "saved", tmp_path / "memory", dig=True)
    status = (tmp_path / "memory").stat()
    assert status.st_size == (1 << 20) + 4096 and status.st_blocks * 512 < 100_000 and status.st_mode & 0o777 == 0o444


def test_a_state_is_json_and_not_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").write_text('{"a": 1}')
    assert read_json(tmp_path / "state") == {"a": 1}
    monkeypatch.setattr("node_agent.drivers.cloud_hypervisor.bundle.MAX_STATE_BYTES", 7)
    with pytest.raises(BadConfig, match="no file of a snapshot"):
        read_json(tmp_path / "state")
