"""grpclib's server with windows and frames of the size of our messages."""

import asyncio

from grpclib.config import Configuration
from grpclib.protocol import H2Protocol
from grpclib.server import Server
from h2.settings import SettingCodes
from hyperframe.frame import Frame

# What a stream and a connection may have under way towards us. A stream's window holds several chunks of an upload:
# with one alone, every chunk waits for the window of the one before to come back.
STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES = 1 << 20, 2 << 20
# A chunk of an upload is one frame: with the default of 16 KiB it is sixteen, each handled by Python.
MAX_FRAME_BYTES = 1 << 20

CONFIGURATION = Configuration(
    http2_connection_window_size=CONNECTION_WINDOW_BYTES, http2_stream_window_size=STREAM_WINDOW_BYTES
)


# h2 describes each frame that arrives to a log that is off, its bytes as digits: 40% of what an upload takes here.
setattr(Frame, "__repr__", lambda frame: type(frame).__name__)  # noqa: B010


class AgentProtocol(H2Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how large a frame may be."""
        super().connection_made(transport)
        connection = self.connection._connection
        connection.update_settings({SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES})
        # At once, where h2 would wait to hear that the peer knows: grpc may use what it knows before it says so.
        connection.incoming_buffer.max_frame_size = connection.max_inbound_frame_size = MAX_FRAME_BYTES
        self.connection.flush()


class AgentServer(Server):
    """Makes AgentProtocols, for whatever transport."""

    def protocol(self) -> H2Protocol:
        """Of a new connection."""
        made = super()._protocol_factory()
        return AgentProtocol(made.handler, made.config, made.h2_config)

    _protocol_factory = protocol
