"""The node agent's own decisions, with a hypervisor and guests that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from node_agent import agent as module
from node_agent import journal
from node_agent.agent import Agent
from node_agent.journal import Journal
from node_agent.ledger import Amount, Ledger
from node_agent.vm_record import VmRecord
from sandpool.node.v1 import node_pb2 as pb
from service_kit import boot
from service_kit.errors import Internal

MUCH = 1 << 50


class Templates:
    """Has every template."""

    def find(self, template_id: str) -> tuple[Path, pb.Template]:
        return Path("/nowhere"), pb.Template(template_id=template_id)


class Broken:
    """A hypervisor whose driver has a fault that nobody has thought of."""

    async def clone(self, *_: object) -> None:
        raise KeyError("pid")


def record(vm_id: str) -> VmRecord:
    return VmRecord(vm_id, "t", 1, 1, 1, 0, False, 60.0, boot.boot_id(), boot.boot_seconds() + 60, 0.0)


def make_agent(state: Path, ledger: Ledger) -> Agent:
    """One whose VMs all fail."""
    made_up = cast("Any", Templates()), cast("Any", None)
    return Agent(cast("Any", Broken()), *made_up, Journal(state), ledger)


async def test_a_vm_that_was_not_proven_for_our_fault_does_not_live(tmp_path: Path) -> None:
    ledger = Ledger(Amount(MUCH, MUCH, MUCH))
    agent = make_agent(tmp_path, ledger)
    with pytest.raises(Internal) as caught:
        await agent.create(record("v1"))
    assert caught.value.reason == "CREATE_FAILED"
    assert list(agent.living()) == [] and ledger.reserved == Amount(0, 0, 0)
    assert [gone.state for gone in agent.records()] == [pb.VM_STATE_DESTROYED]
    await agent.close()


async def test_only_the_latest_dead_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in (module, journal):
        monkeypatch.setattr(owner, "KEPT_GONE", 2)
    agent = make_agent(tmp_path, Ledger(Amount(MUCH, MUCH, MUCH)))
    for number in range(5):
        with pytest.raises(Internal):
            await agent.create(record(f"v{number}"))
    assert sorted(path.name for path in (tmp_path / "gone").iterdir()) == ["v3", "v4"]
    assert [gone.vm_id for gone in agent.records()] == ["v3", "v4"]
    await agent.close()
