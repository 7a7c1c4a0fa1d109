"""Metrics as they are scraped: over real sockets, derived from their owner, with labels that are bounded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandpool.v1 import node_pb2, node_pb2_grpc
from service_kit import errors, joint_pages, metrics, pages, rpc, server
from service_kit.health import Health

BALLS = metrics.derived("test_balls", "For this test.", ("colour",))


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """By name and label values, without the service."""
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name != "service")): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_gauge_is_what_its_owner_says_at_the_scrape() -> None:
    box = ["red", "blue", "red"]
    with metrics.reading(lambda: (metrics.Reading(BALLS, 1, (ball,)) for ball in box)):
        assert samples(metrics.render("test"))["test_balls", "red"] == 2
        box.remove("red")
        assert samples(metrics.render("test"))["test_balls", "red"] == 1
    assert ("test_balls", "red") not in samples(metrics.render("test"))


def test_a_label_that_is_no_enum_is_bounded() -> None:
    label = metrics.Bounded(2)
    assert [label.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


class Nodes(node_pb2_grpc.NodeServiceServicer):
    def __init__(self) -> None:
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def Get(self, request: node_pb2.GetNodeRequest, context: object) -> node_pb2.GetNodeResponse:  # noqa: N802
        self.asked.set()
        await self.go.wait()
        raise errors.NotFound("NODE_NOT_FOUND", "no such node")


async def test_calls_are_counted_by_method_and_code(tmp_path: Path) -> None:
    nodes = Nodes()
    add = {"sandpool.v1.NodeService": lambda it: node_pb2_grpc.add_NodeServiceServicer_to_server(nodes, it)}
    address = f"unix:{tmp_path}/m"
    labels = ("Get", "sandpool.v1.NodeService")

    async def scrape() -> dict[tuple[str, ...], float]:
        return samples((await pages.fetch(address, "/metrics")).body)

    async with (
        server.serve([f"unix:{tmp_path}/s"], add) as serving,
        pages.observed(address, "test", serving.health),
        rpc.open_channel(serving.addresses[0]) as channel,
    ):
        before = (await scrape()).get(("sandpool_rpcs_total", "NOT_FOUND", *labels), 0)
        call = asyncio.ensure_future(node_pb2_grpc.NodeServiceStub(channel).Get(node_pb2.GetNodeRequest()))
        await nodes.asked.wait()
        assert (await scrape())["sandpool_rpcs_in_flight", *labels] == 1
        nodes.go.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        found = await scrape()
        assert found["sandpool_rpcs_in_flight", *labels] == 0
        assert found["sandpool_rpcs_total", "NOT_FOUND", *labels] == before + 1
        assert found["sandpool_rpc_seconds_count", *labels] >= 1
        assert found["process_resident_memory_bytes",] > 1e6
        with pytest.raises(grpc.aio.AioRpcError):  # a method that nobody serves makes no series
            await channel.unary_unary("/made.up.Service/Method")(b"")
        assert b"made.up" not in (await pages.fetch(address, "/metrics")).body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.0\r\nHost: a\r\n\r\n", b"200"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\xff\xfe\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /" + b"a" * pages.HEADER_BYTES + b" HTTP/1.1\r\n\r\n", b""),
        (b"GET /metrics HT", b""),
    ],
)
async def test_only_pages_are_served(tmp_path: Path, request_bytes: bytes, status: bytes) -> None:
    async with pages.observed(f"unix:{tmp_path}/m", "test", Health()):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "m")
        writer.write(request_bytes)
        writer.write_eof()
        try:
            answer = await reader.read()
        except ConnectionResetError:
            answer = b""
        assert answer.split(b" ")[1:2] == ([status] if status else [])
        writer.close()
    assert not (tmp_path / "m").exists()


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with pages.observed(f"unix:{tmp_path}/m", "test", Health()):
        idle = [await asyncio.open_unix_connection(tmp_path / "m") for _ in range(pages.MAX_CONNECTIONS)]
        reader, writer = await asyncio.open_unix_connection(tmp_path / "m")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            writer.write(b"GET /livez HTTP/1.1\r\n\r\n")
            await reader.readexactly(1)
        for _, other in [*idle, (reader, writer)]:
            other.close()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "10.0.0.1:9464", "example.org:1", "nonsense"])
async def test_pages_beyond_loopback_are_refused(listen: str) -> None:
    with pytest.raises(pages.PagesRefused):
        async with pages.observed(listen, "test", Health()):
            pass


async def test_an_address_that_is_taken_is_refused() -> None:
    async with pages.observed("127.0.0.1:0", "test", Health()) as address:
        with pytest.raises(pages.PagesRefused, match="in use"):
            async with pages.observed(address, "test", Health()):
                pass


async def test_readiness_names_what_is_missing(tmp_path: Path) -> None:
    health = Health({"store": ("a.Service",), "nodes": ()})
    health.set("store", True)
    health.set("nodes", False, "no node has registered")
    async with pages.observed(f"unix:{tmp_path}/m", "test", health):
        answer = await pages.fetch(f"unix:{tmp_path}/m", "/readyz")
        assert answer.status == 503
        assert json.loads(answer.body)["dependencies"] == [
            {"name": "store", "ready": True, "detail": ""},
            {"name": "nodes", "ready": False, "detail": "no node has registered"},
        ]
        health.set("nodes", True)
        assert (await pages.fetch(f"unix:{tmp_path}/m", "/readyz")).status == 200
        health.drain()
        assert (await pages.fetch(f"unix:{tmp_path}/m", "/readyz")).status == 503
        assert (await pages.fetch(f"unix:{tmp_path}/m", "/livez")).status == 200


async def test_the_joint_page_has_each_family_once_and_says_who_is_missing(tmp_path: Path) -> None:
    sources = (f"one=unix:{tmp_path}/1", f"two=unix:{tmp_path}/2", f"gone=unix:{tmp_path}/3")
    with metrics.reading(lambda: [metrics.Reading(BALLS, 1, ("red",))]):
        async with (
            pages.observed(f"unix:{tmp_path}/1", "one", Health()),
            pages.observed(f"unix:{tmp_path}/2", "two", Health()),
        ):
            text = (await joint_pages.scrape(sources)).body.decode()
            ready = await joint_pages.ready(sources)
    assert text.count("# TYPE test_balls gauge") == 1
    assert 'test_balls{colour="red",service="one"} 1.0' in text and 'service="two"} 1.0' in text
    assert 'sandpool_up{service="two"} 1.0' in text and 'sandpool_up{service="gone"} 0.0' in text
    assert ready.status == 503
    assert [(it["name"], it["ready"]) for it in json.loads(ready.body)["dependencies"]] == [
        ("one", True),
        ("two", True),
        ("gone", False),
    ]
