"""QMP against a peer that speaks as QEMU does: events between replies, errors, and a sudden end."""

import asyncio
import json
import os
import socket
import tempfile

import pytest

from node_agent.drivers.qemu.qmp import Qmp, QmpError

ANSWERS = {
    "qmp_capabilities": [{"return": {}}],
    "migrate": [
        {"event": "MIGRATION", "data": {"status": "active"}},
        {"return": {}},
        {"event": "MIGRATION", "data": {"status": "completed"}},
    ],
    "cont": [{"error": {"class": "GenericError", "desc": "not now"}}],
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'{"QMP": {}}\n')
    while line := await reader.readline():
        command = json.loads(line)["execute"]
        if command == "quit":
            break
        writer.writelines(json.dumps(message).encode() + b"\n" for message in ANSWERS[command])
    writer.close()


async def test_a_conversation() -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = await asyncio.start_unix_server(answer, f"{directory}/q")
        qmp = await Qmp.connect(f"{directory}/q")
        assert await qmp.execute("migrate", uri="x") == {}
        await qmp.migration_ended()
        with pytest.raises(QmpError, match="cont: not now"):
            await qmp.execute("cont")
        with pytest.raises(QmpError, match="QEMU is gone"):
            await qmp.execute("quit")
        with pytest.raises(QmpError, match="QEMU is gone"):
            await qmp.migration_ended()
        await qmp.close()
        server.close()
        await server.wait_closed()


async def test_a_peer_that_ends_at_once_is_gone_for_good() -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), f"{directory}/q")
        with pytest.raises(QmpError, match="QEMU is gone"):
            await Qmp.connect(f"{directory}/q")
        server.close()
        await server.wait_closed()


def take_a_file(listener: socket.socket) -> bytes:
    """A peer that writes to what it is given. Returns the command that came with it."""
    peer, _ = listener.accept()
    with peer:
        peer.sendall(b'{"QMP": {}}\n')
        assert b"qmp_capabilities" in peer.recv(4096)
        peer.sendall(b'{"return": {}}\n')
        command, descriptors, _, _ = socket.recv_fds(peer, 4096, 1)
        with os.fdopen(descriptors[0], "wb") as file:
            file.write(b"state")
        peer.sendall(b'{"return": {}}\n')
    return command


async def test_an_open_file_is_given_under_a_name() -> None:
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/q")
        listener.listen()
        peer = asyncio.create_task(asyncio.to_thread(take_a_file, listener))
        qmp = await Qmp.connect(f"{directory}/q")
        with tempfile.TemporaryFile() as file:
            await qmp.give(file.fileno(), "state")
            assert json.loads(await peer) == {"execute": "getfd", "arguments": {"fdname": "state"}}
            file.seek(0)
            assert file.read() == b"state"
        await qmp.close()
