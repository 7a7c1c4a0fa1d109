"""What the node agent says it lacks: a hypervisor that cannot be run, and a tunnel that cannot be started again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent import metrics
from node_agent.drivers.cloud_hypervisor.driver import CloudHypervisorVmm, Settings
from node_agent.drivers.qemu.driver import QemuVmm
from node_agent.readiness import AGENT, DRIVER, POOL_MANAGER, TUNNEL, make_health, prove_driver
from node_agent.tunnel_process import RECORD_FILE, TunnelProcess


@pytest.fixture
def scratch() -> Iterator[Path]:
    """With a short path."""
    path = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


async def test_a_hypervisor_that_is_missing_is_said(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = make_health()
    health.serves((AGENT,))
    health.set(TUNNEL, True)
    acceleration = await prove_driver(QemuVmm(scratch), health)
    assert acceleration.name in ("kvm", "emulation") and health.serving(AGENT)
    assert not health.ready  # nobody knows of this node yet
    health.set(POOL_MANAGER, True)
    assert health.ready
    monkeypatch.setenv("PATH", str(scratch))
    assert (await prove_driver(QemuVmm(scratch), health)).name == "none"
    assert not health.serving(AGENT)
    (driver,) = (it for it in health.dependencies if it.name == DRIVER)
    assert "qemu" in driver.detail


@pytest.mark.parametrize(("version", "said"), [("v50.0", "too old"), ("v52.0", "twice"), ("", "not installed")])
async def test_a_cloud_hypervisor_that_cannot_be_used_is_said(scratch: Path, version: str, said: str) -> None:
    program, health = scratch / "cloud-hypervisor", make_health()
    if version:
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    settings = Settings(program=str(program), cache=scratch, allow_unconfined=True)
    acceleration = await prove_driver(CloudHypervisorVmm(settings), health)
    assert acceleration.name == "none" and said in acceleration.detail
    assert not health.serving(AGENT)


async def test_a_tunnel_that_cannot_be_started_again_is_tried_again(scratch: Path) -> None:
    for name in ("vms", "keys"):
        (scratch / name).mkdir()
    tunnel = TunnelProcess(scratch, "127.0.0.1:0")
    await tunnel.ensure()
    told: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    keeping = asyncio.create_task(tunnel.keep(lambda ready, why: told.put_nowait((ready, why))))
    assert await told.get() == (True, "")
    restarts = metrics.TUNNEL_RESTARTS._value.get()
    with socket.create_server(("127.0.0.1", 0)) as other:
        tunnel.address = f"127.0.0.1:{other.getsockname()[1]}"
        os.kill(json.loads((scratch / RECORD_FILE).read_text())["pid"], signal.SIGKILL)
        assert await told.get() == (False, "it died and is being started again")
        ready, why = await told.get()
        assert not ready and "tunnel.log" in why
    while (await told.get())[0] is False:
        pass
    assert metrics.TUNNEL_RESTARTS._value.get() == restarts + 1
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await tunnel.stop()


async def test_a_tunnel_that_cannot_be_recorded_does_not_keep_its_address(scratch: Path) -> None:
    for name in ("vms", "keys"):
        (scratch / name).mkdir()
    tunnel = TunnelProcess(scratch, "127.0.0.1:0")
    address = await tunnel.ensure()
    told: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
    keeping = asyncio.create_task(tunnel.keep(lambda ready, why: told.put_nowait((ready, why))))
    assert await told.get() == (True, "")
    pid = json.loads((scratch / RECORD_FILE).read_text())["pid"]
    (scratch / RECORD_FILE).unlink()
    (scratch / RECORD_FILE).mkdir()  # as good as a full disk, for root too
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert await told.get() == (False, "it died and is being started again")
        ready, why = await told.get()
        assert not ready and "directory" in why
        (scratch / RECORD_FILE).rmdir()
        while (await told.get())[0] is False:
            pass
    assert tunnel.address == json.loads((scratch / RECORD_FILE).read_text())["address"] == address
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await tunnel.stop()


async def test_a_tunnel_that_is_not_waited_for_does_not_live(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    silent = subprocess.Popen(["sleep", "10"], **pipes)  # noqa: ASYNC220
    monkeypatch.setattr(TunnelProcess, "_spawn", lambda *_: silent)
    starting = asyncio.create_task(TunnelProcess(scratch, "127.0.0.1:0").ensure())
    await asyncio.wait([starting], timeout=0.1)
    starting.cancel()
    await asyncio.wait([starting])
    assert silent.returncode == -signal.SIGKILL
