"""What the agent's HTTP/2 takes from a client, frame by frame."""

from __future__ import annotations

import asyncio
import struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from sandpool.v1 import execution_pb2 as pb

from .conftest import Agent


async def test_a_large_frame_may_come_before_the_settings_are_acknowledged(agent: Agent) -> None:
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    client.max_outbound_frame_size = 1 << 20  # as a client that has read the settings, and has not said so yet
    headers = {":method": "POST", ":scheme": "http", ":authority": "a", "te": "trailers"}
    headers[":path"] = "/sandpool.v1.ExecutionService/Execute"
    headers["content-type"] = "application/grpc"
    pseudo_first = sorted(headers.items(), key=lambda header: not header[0].startswith(":"))
    message = pb.ExecuteRequest(code=pb.Code(source="print('on') #" + "x" * 50_000)).SerializeToString()
    client.send_headers(1, pseudo_first)
    client.send_data(1, struct.pack(">BI", 0, len(message)) + message, end_stream=True)
    reader, writer = await asyncio.open_unix_connection(str(agent.data.parent / "s"))
    writer.write(client.data_to_send())
    received, ended = b"", False
    while not ended:
        data = await reader.read(65536)
        assert data, "the agent has closed the connection"
        for event in client.receive_data(data):
            received += event.data if isinstance(event, DataReceived) else b""
            ended |= isinstance(event, StreamEnded)
    writer.close()
    assert b"on" in received
