"""What people type."""

import pytest

from sandpool.cli import names
from sandpool.cli.names import SessionName
from sandpool.enum_names import short_name
from sandpool.v1 import event_pb2, pool_pb2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice", SessionName("python", "alice")),
        ("gpu/alice", SessionName("gpu", "alice")),
        ("gpu/a/b", SessionName("gpu", "a/b")),
    ],
)
def test_sessions(text: str, expected: SessionName) -> None:
    assert SessionName.parse(text) == expected


@pytest.mark.parametrize("text", ["", "/a", "gpu/"])
def test_sessions_without_a_part(text: str) -> None:
    with pytest.raises(ValueError, match="SESSION"):
        SessionName.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice:", (SessionName("python", "alice"), "")),
        ("gpu/alice:d/x:y", (SessionName("gpu", "alice"), "d/x:y")),
        ("local", None),
        ("./a:b", None),
        ("/tmp/a:b", None),
    ],
)
def test_remotes(text: str, expected: object) -> None:
    assert names.parse_remote(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("250ms", 0.25), ("30", 30), ("1.5m", 90), ("2h", 7200), ("1d", 86400)])
def test_durations(text: str, expected: float) -> None:
    assert names.parse_seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("7", 7), ("512MiB", 512 << 20), ("2G", 2 << 30), ("1 kb", 1024), ("1TiB", 1 << 40)]
)
def test_sizes(text: str, expected: int) -> None:
    assert names.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "x", "-1s", "1w", "1 GiB2"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ValueError, match="for example"):
        names.parse_seconds(text)
    with pytest.raises(ValueError, match="for example"):
        names.parse_bytes(text)


def test_sizes_for_people() -> None:
    assert [names.human_bytes(count) for count in (0, 1023, 1536, 5 << 30, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]


def test_enums() -> None:
    """A client does not fail over what only a service of a later version knows."""
    assert short_name(event_pb2.EventType.DESCRIPTOR, event_pb2.EVENT_TYPE_NODE_READY) == "NODE_READY"
    assert short_name(pool_pb2.PoolState.DESCRIPTOR, 0) == "UNSPECIFIED"
    assert short_name(pool_pb2.PoolState.DESCRIPTOR, 9999) == "9999"
