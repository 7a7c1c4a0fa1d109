"""The kit: settings, capabilities, and errors that arrive as they were raised."""

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sandpool.v1 import node_pb2, node_pb2_grpc
from service_kit import capability, config, errors, rpc, server, telemetry


@dataclass(frozen=True)
class Settings:
    name: str
    path: Path
    seconds: float = 1.5
    peers: tuple[str, ...] = ()
    limit: int | None = None


def test_settings_are_converted(tmp_path: Path) -> None:
    (tmp_path / "c").write_text('name = "a"\npath = "/x"\nseconds = 2\npeers = ["p"]\n')
    assert config.load(Settings, tmp_path / "c") == Settings("a", Path("/x"), 2.0, ("p",))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('name = "a"\npath = "/x"\ncolour = 1\n', "'colour'"),
        ('name = "a"\n', "'path'"),
        ('name = 1\npath = "/x"\n', "'name'"),
        ('name = "a"\npath = "/x"\nlimit = true\n', "'limit'"),
        ("name = \n", "c: "),
    ],
)
def test_a_bad_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(config.ConfigError, match=named):
        config.load(Settings, tmp_path / "c")


def test_a_capability_opens_its_vm_until_it_expires() -> None:
    key = Ed25519PrivateKey.generate()
    keys = [Ed25519PrivateKey.generate().public_key(), key.public_key()]
    token = capability.sign(key, "vm1", 100)
    capability.verify(keys, token, "vm1", 99)
    for refused in [
        lambda: capability.verify(keys, token, "vm2", 99),
        lambda: capability.verify(keys, token, "vm1", 100),
        lambda: capability.verify(keys[:1], token, "vm1", 99),
        lambda: capability.verify(keys, "A" + token, "vm1", 99),
        lambda: capability.verify(keys, "x.é", "vm1", 99),
        lambda: capability.verify(keys, "", "vm1", 99),
        lambda: capability.verify(keys, token * 9, "vm1", 99),
    ]:
        with pytest.raises(capability.CapabilityRefused):
            refused()


class Nodes(node_pb2_grpc.NodeServiceServicer):
    async def Get(self, request: node_pb2.GetNodeRequest, context: object) -> node_pb2.GetNodeResponse:  # noqa: N802
        if request.node_id == "crash":
            raise ValueError("secret")
        raise errors.ResourceExhausted(
            "NODE_FULL", "no room", field="node_id", retry_after_seconds=2.5, metadata={"a": "b"}
        )


async def test_an_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    services = {"sandpool.v1.NodeService": lambda s: node_pb2_grpc.add_NodeServiceServicer_to_server(Nodes(), s)}
    async with (
        server.serve([f"unix:{tmp_path}/s"], services) as serving,
        rpc.open_channel(serving.addresses[0]) as channel,
    ):
        stub = node_pb2_grpc.NodeServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(node_pb2.GetNodeRequest(node_id="full"))
        error = errors.from_rpc_error(caught.value)
        assert isinstance(error, errors.ResourceExhausted)
        assert (error.reason, error.message, error.field) == ("NODE_FULL", "no room", "node_id")
        assert (error.retry_after_seconds, error.metadata) == (2.5, {"a": "b"})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(node_pb2.GetNodeRequest(node_id="crash"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in (caught.value.details() or "")


async def test_an_open_listener_without_tls_is_refused() -> None:
    with pytest.raises(server.ListenRefused):
        async with server.serve(["0.0.0.0:0"], {}):
            pass


async def test_a_socket_that_is_served_is_not_taken_over(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    async with server.serve([address], {}):
        with pytest.raises(server.ListenRefused, match="another process"):
            async with server.serve([address], {}):
                pass
    async with server.serve([address], {}):  # what is left of it is no obstacle
        pass


def test_a_span_that_was_measured_elsewhere_has_its_length_and_its_parent() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with patch.object(telemetry, "tracer", tracer):
        parent = tracer.start_span("guest")
        telemetry.add_span("guest.run", 0.25, parent)
        parent.end()
    (child, outer) = exporter.get_finished_spans()
    assert child.parent is not None and child.parent.span_id == outer.context.span_id
    assert child.end_time is not None and child.start_time is not None
    assert child.end_time - child.start_time == 250_000_000
