"""The watch of one node, whatever its listener does."""

from __future__ import annotations

import asyncio
import tempfile

from pool_manager.node_link import NodeLink
from pool_manager.store import NodeRow
from sandpool.node.v1 import node_pb2

from .conftest import WAIT_SECONDS
from .node import Node


class Listener:
    """Fails on the first VM of which it hears."""

    def __init__(self) -> None:
        self.failed = False
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.reasons: list[str] = []

    async def on_snapshot(self, link: NodeLink, snapshot: node_pb2.NodeSnapshot) -> None:
        self.heard.put_nowait("snapshot")

    def on_vm(self, link: NodeLink, vm: node_pb2.Vm) -> None:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError
        self.heard.put_nowait(vm.vm_id)

    def on_ready(self, link: NodeLink) -> None:
        self.heard.put_nowait("ready")

    def on_unreachable(self, link: NodeLink, reason: str) -> None:
        self.reasons.append(reason)


async def test_a_watch_that_fails_begins_again() -> None:
    with tempfile.TemporaryDirectory(prefix="sp-", dir="/tmp") as path:
        node, listener = Node(f"unix:{path}/node"), Listener()
        link = NodeLink(NodeRow("node-1", node.address, "127.0.0.1:1", ""), listener)
        await node.start()
        watch = asyncio.create_task(link.run())
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                assert [await listener.heard.get() for _ in range(2)] == ["snapshot", "ready"]
                node.claim("vm-1")
                assert [await listener.heard.get() for _ in range(2)] == ["snapshot", "ready"]
                node.claim("vm-2")
                assert await listener.heard.get() == "vm-2"
            assert listener.reasons == ["INTERNAL"]
        finally:
            watch.cancel()
            await asyncio.wait([watch])
            await link.close()
            await node.stop()
