"""What any call can be answered with. Each goes on until the client has enough of it."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import Awaitable, Callable

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from .wire import Call

# In status texts, trailers and unknown fields; it must be found nowhere else.
SECRET = "hostile-secret"
GIB = 1 << 30
BLOCK = bytes(16_384)
TRAILERS = [("sandpool-reason", SECRET), ("set-cookie", SECRET), ("x-" + SECRET, SECRET)]


async def huge_message(call: Call) -> None:
    """1 GiB, announced and sent within the windows."""
    await call.headers()
    await call.data(struct.pack(">BI", 0, GIB))
    while True:
        await call.data(BLOCK * 16)


async def huge_message_unpaced(call: Call) -> None:
    """The same without regard to windows."""
    await call.headers()
    await call.data(struct.pack(">BI", 0, GIB))
    while True:
        await call.raw(DataFrame(call.stream_id, BLOCK))


async def bomb(call: Call) -> None:
    """A message of 64 KiB that inflates to 64 MiB."""
    await call.headers([("grpc-encoding", "gzip")])
    packed = gzip.compress(bytes(64 << 20))
    await call.data(struct.pack(">BI", 1, len(packed)) + packed)
    await call.trailers()


def _literal(name: bytes, value: bytes) -> bytes:
    """HPACK without indexing; both shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


async def _endless_block(call: Call, begin: bytes, flags: list[str]) -> None:
    await call.raw(HeadersFrame(call.stream_id, begin, flags=flags))
    block = b"".join(_literal(b"x-%05d" % n, b"v" * 100) for n in range(100))
    batch = ContinuationFrame(call.stream_id, block).serialize() * 10
    while True:
        await call.raw(batch)


async def endless_headers(call: Call) -> None:
    """CONTINUATION for ever."""
    await _endless_block(call, _literal(b":status", b"200"), [])


async def endless_trailers(call: Call) -> None:
    """After proper headers."""
    await call.headers()
    await _endless_block(call, _literal(b"grpc-status", b"0"), ["END_STREAM"])


async def many_headers(call: Call) -> None:
    """100,000 in one block that ends."""
    await call.raw(HeadersFrame(call.stream_id, _literal(b":status", b"200")))
    for first in range(0, 100_000, 100):
        block = b"".join(_literal(b"x-%06d" % n, b"") for n in range(first, first + 100))
        flags = ["END_HEADERS"] if first == 99_900 else []
        await call.raw(ContinuationFrame(call.stream_id, block, flags=flags))


def _after_the_end(name: str, frames: Callable[[Call], list[Frame]]) -> Callable[[Call], Awaitable[None]]:
    """A proper answer, and then frames for ever, which no call waits for."""

    async def attack(call: Call) -> None:
        from .execution import ENDED, started

        await call.headers()
        await call.message(started("a"))
        await call.message(ENDED)
        await call.trailers()
        if name == "late-continuations":
            await _endless_block(call, _literal(b":status", b"200"), [])
        batch = b"".join(frame.serialize() for frame in frames(call))
        while True:
            await call.raw(batch)

    return attack


LATE: dict[str, Callable[[Call], list[Frame]]] = {
    "late-continuations": lambda call: [],
    "late-headers": lambda call: [
        HeadersFrame(call.stream_id, _literal(b"x", b"v" * 100) * 100, flags=["END_HEADERS"]) for _ in range(10)
    ],
    "late-data": lambda call: [DataFrame(call.stream_id, BLOCK)],
    "late-pings": lambda call: [PingFrame(0, bytes(8)) for _ in range(100)],
    "late-settings": lambda call: [SettingsFrame(0, settings={4: 65_535 + n % 2}) for n in range(100)],
    "late-unknown": lambda call: [ExtensionFrame(0xFA, 0, 0, BLOCK)],
    "late-windows": lambda call: [WindowUpdateFrame(0, window_increment=1) for _ in range(100)],
    "late-resets": lambda call: [RstStreamFrame(call.stream_id, error_code=0) for _ in range(100)],
    "late-goaways": lambda call: [GoAwayFrame(0, last_stream_id=2**31 - 1, additional_data=BLOCK)],
}


async def empty_continuations(call: Call) -> None:
    """CONTINUATION for ever, with nothing in it."""
    await call.raw(HeadersFrame(call.stream_id, _literal(b":status", b"200")))
    while True:
        await call.raw(*(ContinuationFrame(call.stream_id, b"") for _ in range(100)))


async def empty_data(call: Call) -> None:
    """DATA for ever, with nothing in it."""
    await call.headers()
    while True:
        await call.raw(*(DataFrame(call.stream_id, b"") for _ in range(100)))
        await asyncio.sleep(0)


async def pings(call: Call) -> None:
    """For ever, and no answer is read."""
    while True:
        await call.raw(*(PingFrame(0, bytes(8)) for _ in range(100)))


async def settings(call: Call) -> None:
    """For ever."""
    while True:
        await call.raw(*(SettingsFrame(0, settings={4: 65_535 + n % 2}) for n in range(100)))


async def stall(call: Call) -> None:
    """Windows of nothing, and nothing else."""
    await call.raw(SettingsFrame(0, settings={4: 0}))
    await asyncio.Event().wait()


async def silence(call: Call) -> None:
    """Not a word."""
    await asyncio.Event().wait()


async def reset(call: Call) -> None:
    """PROTOCOL_ERROR at once."""
    await call.raw(RstStreamFrame(call.stream_id, error_code=1))


async def refuse_stream(call: Call) -> None:
    """REFUSED_STREAM, which asks the client to try again."""
    await call.raw(RstStreamFrame(call.stream_id, error_code=7))


async def go_away(call: Call) -> None:
    """GOAWAY for every call."""
    await call.raw(GoAwayFrame(0, last_stream_id=0, error_code=0))


async def calm(call: Call) -> None:
    """GOAWAY with ENHANCE_YOUR_CALM and a debug text."""
    await call.raw(GoAwayFrame(0, last_stream_id=0, error_code=11, additional_data=SECRET.encode()))


async def garbage(call: Call) -> None:
    """Bytes that are no HTTP/2."""
    while True:
        await call.raw(b"\xff" * 65_536)


async def status(call: Call) -> None:
    """A code of its own, with texts."""
    await call.headers()
    await call.trailers(16, [("grpc-message", SECRET), *TRAILERS])


async def allowed_status(call: Call) -> None:
    """A refusal that may pass, with a text that is cut, and trailers that may not."""
    await call.headers()
    extra = [("grpc-message", "%07" + "a" * 4000), ("sandpool-reason", "FILE_NOT_FOUND"), *TRAILERS[1:]]
    await call.trailers(5, extra)


async def details(call: Call) -> None:
    """google.rpc.Status in the trailers, which is the scheduler's to give."""
    await call.headers()
    await call.trailers(5, [("grpc-status-details-bin", "CAUSDWhvc3RpbGUtc2VjcmV0"), *TRAILERS])


async def no_status(call: Call) -> None:
    """The end of the stream without any."""
    await call.headers()
    call.connection.h2.end_stream(call.stream_id)
    await call.connection.flush()


async def bad_status(call: Call) -> None:
    """A number that is none."""
    await call.headers()
    call.connection.h2.send_headers(call.stream_id, [("grpc-status", SECRET)], end_stream=True)
    await call.connection.flush()


async def not_grpc(call: Call) -> None:
    """A web page."""
    call.connection.h2.send_headers(call.stream_id, [(":status", "200"), ("content-type", "text/html")])
    await call.connection.flush()
    await call.data(SECRET.encode() * 1000)
    call.connection.h2.end_stream(call.stream_id)
    await call.connection.flush()


ATTACKS: dict[str, Callable[[Call], Awaitable[None]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(huge_message, huge_message_unpaced, bomb, endless_headers, endless_trailers, many_headers),
        *(empty_continuations, empty_data, pings, settings, stall, silence, reset, refuse_stream, go_away, calm),
        *(garbage, status, allowed_status, details, no_status, bad_status, not_grpc),
    )
}
ATTACKS |= {name: _after_the_end(name, frames) for name, frames in LATE.items()}
