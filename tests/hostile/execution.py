"""sandpool.v1.ExecutionService of the hostile guest: the code of an Execute names what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sandpool.v1 import execution_pb2 as pb
from sandpool.v1 import session_pb2

from .attacks import ATTACKS, SECRET
from .wire import Call, framed

TINY_EVENTS = 200_000


def started(execution_id: str, position: int = 0, **fields: object) -> pb.ExecutionEvent:
    """First."""
    event = pb.ExecutionEvent(next_position=position)
    event.started.execution_id = execution_id
    return event


def output(offset: int, data: bytes, position: int) -> pb.ExecutionEvent:
    """On standard output."""
    chunk = pb.OutputChunk(stream=pb.OUTPUT_STREAM_STDOUT, offset=offset, data=data)
    return pb.ExecutionEvent(output=chunk, next_position=position)


ENDED = pb.ExecutionEvent(ended=pb.ExecutionEnded(exit_code=0))
UNKNOWN = b"\xa2\x06" + bytes([len(SECRET)]) + SECRET.encode()  # field 100, in any message


def _error(**fields: str) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(error=pb.ExecutionError(**fields))


def _result(**fields: object) -> pb.ExecutionEvent:
    return pb.ExecutionEvent(result=pb.ResultChunk(**fields))  # type: ignore[arg-type]


# What follows "started" in streams that break a rule. None: the trailers come at once.
VIOLATIONS: dict[str, list[pb.ExecutionEvent | bytes]] = {
    "wrong-offset": [output(1, b"x", 1)],
    "offset-back": [output(0, b"xy", 2), output(1, b"x", 3)],
    "two-ends": [ENDED, ENDED],
    "two-starts": [started("a")],
    "no-end": [output(0, b"x", 1)],
    "empty-event": [pb.ExecutionEvent()],
    "large-chunk": [output(0, bytes(262_145), 262_145)],
    "long-mime": [_result(result_id=1, mime_type="a" * 1025, last=True)],
    "long-error": [_error(value="v" * 100_000)],
    "position-back": [output(0, b"x", 5), output(1, b"x", 4)],
    "bad-utf8": [b"\x22\x03\x0a\x01\xff"],
    "truncated": [b"\x0a\x7f\x01"],
    "no-outcome": [pb.ExecutionEvent(ended=pb.ExecutionEnded())],
}


async def _say(call: Call, *events: pb.ExecutionEvent | bytes) -> None:
    await call.headers()
    for event in events:
        await call.message(event)
    await call.trailers()


async def _output_first(call: Call, execution_id: str) -> None:
    await _say(call, output(0, b"x", 1), ENDED)


async def _other_id(call: Call, execution_id: str) -> None:
    await _say(call, started("other"), ENDED)


async def _nothing(call: Call, execution_id: str) -> None:
    await _say(call)


async def _unknown_fields(call: Call, execution_id: str) -> None:
    lie = started(execution_id)
    lie.started.session.CopyFrom(session_pb2.SessionBinding(epoch=99, vm_id=SECRET))
    nested = b"\x12" + bytes([len(UNKNOWN) + 5]) + b"\x08\x01\x1a\x01x" + UNKNOWN + b"\x78\x01"
    await _say(call, lie.SerializeToString() + UNKNOWN, nested, ENDED.SerializeToString() + b"\x78\x01" + UNKNOWN)


async def _tiny_events(call: Call, execution_id: str) -> None:
    await call.headers()
    await call.message(started(execution_id))
    for first in range(0, TINY_EVENTS, 1000):
        await call.data(
            b"".join(framed(output(n, b"x", n + 1).SerializeToString()) for n in range(first, first + 1000))
        )
    end = pb.ExecutionEvent()
    end.CopyFrom(ENDED)
    end.next_position = TINY_EVENTS
    await call.message(end)
    await call.trailers()


async def _empty_events(call: Call, execution_id: str) -> None:
    """Results without a byte, for ever."""
    await call.headers()
    await call.message(started(execution_id))
    one = framed(_result(result_id=1, mime_type="a", last=True).SerializeToString())
    while True:
        await call.data(one * 1000)


async def _large_output(call: Call, execution_id: str) -> None:
    """For ever, in proper chunks."""
    await call.headers()
    await call.message(started(execution_id))
    position = 0
    while True:
        await call.message(output(position, bytes(262_144), position + 262_144))
        position += 262_144


async def _open_results(call: Call, execution_id: str) -> None:
    many = [_result(result_id=n, mime_type="a", data=b"") for n in range(1, 100_000)]
    await _say(call, started(execution_id), *many)


async def _breaks_off(call: Call, execution_id: str) -> None:
    """Whatever is asked: a beginning, and a reset that asks to come again."""
    await call.headers()
    request = pb.AttachRequest.FromString(call.request) if call.path.endswith("Attach") else pb.AttachRequest()
    await call.message(started(execution_id, request.position))
    await ATTACKS["refuse-stream"](call)
    call.connection.h2.close_connection()


PROGRAMS: dict[str, Callable[[Call, str], Awaitable[None]]] = {
    "output-first": _output_first,
    "other-id": _other_id,
    "nothing": _nothing,
    "unknown-fields": _unknown_fields,
    "tiny-events": _tiny_events,
    "empty-events": _empty_events,
    "large-output": _large_output,
    "open-results": _open_results,
    "breaks-off": _breaks_off,
}
# What an Attach goes on with: it names no program.
_begun: dict[str, str] = {}


async def answer(call: Call, method: str) -> None:
    """One call."""
    await call.ended.wait()
    if method == "Execute":
        request = pb.ExecuteRequest.FromString(call.request)
        _begun[request.execution_id] = request.code.source
        await _run(call, request.execution_id, request.code.source)
    elif method == "Attach":
        attach = pb.AttachRequest.FromString(call.request)
        if attach.execution_id in _begun:
            await _run(call, attach.execution_id, _begun[attach.execution_id])
        else:
            await refuse(call)
    elif method == "List":
        await call.answer(pb.ListExecutionsResponse())
    elif method == "Get":
        await call.answer(pb.GetExecutionResponse(execution=pb.Execution(execution_id="other")))
    else:
        await refuse(call)


async def refuse(call: Call) -> None:
    """As an honest one does that knows nothing of it."""
    await call.headers()
    await call.trailers(5, [("sandpool-reason", "EXECUTION_NOT_FOUND")])


async def _run(call: Call, execution_id: str, name: str) -> None:
    if name in VIOLATIONS:
        await _say(call, started(execution_id), *VIOLATIONS[name])
    elif name in PROGRAMS:
        await PROGRAMS[name](call, execution_id)
    elif name in ATTACKS:
        await ATTACKS[name](call)
    else:
        await _say(call, started(execution_id), ENDED)
