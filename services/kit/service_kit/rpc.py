"""Channels between the services."""

from collections.abc import Sequence

import grpc

# The scheduler bounds code, stdin and env at 1 MiB; a caller that sends more gets that answer, not this limit's.
MAX_RECEIVE_BYTES = 16 << 20

# A chunk of output or of a file is one frame: with the default of 16 KiB it is eight, each handled on its own.
MAX_FRAME_BYTES = 1 << 20

# No message to a client exceeds 1 MiB; what the scheduler adds to a guest's (a session's binding) fits into the rest.
MAX_GUEST_MESSAGE_BYTES = (1 << 20) - 4096
# All headers, or all trailers, of a guest: a status, a reason and a message of 1 KiB, which percent signs may treble.
MAX_GUEST_METADATA_BYTES = 8192

# gRPC reads ahead of what it has parsed, without a bound unless it is given one: a peer that sends faster than its
# bytes are parsed (small frames, headers that do not end) took a gigabyte here in a minute.
READ_AHEAD = ("grpc.experimental.tcp_max_read_buffer_size", 262_144)

# An ambient http_proxy would send loopback channels elsewhere.
CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_RECEIVE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    READ_AHEAD,
)

# A grpc.aio server runs 8 MiB ahead per stream without the last two; the ping option has this name and no other.
SERVER_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", MAX_RECEIVE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 262_144),
    ("grpc.http2.max_frame_size", MAX_FRAME_BYTES),
    READ_AHEAD,
)


def open_channel(address: str, options: Sequence[tuple[str, int | str]] = ()) -> grpc.aio.Channel:
    """A channel to another service of sandpool at host:port or unix:PATH. Connects on first use."""
    return grpc.aio.insecure_channel(address, options=(*CHANNEL_OPTIONS, *options))


def tunnel_channel(
    vm_id: str, tunnel_address: str, capability: str, max_receive_bytes: int = MAX_GUEST_MESSAGE_BYTES
) -> grpc.aio.Channel:
    """A channel to the guest agent of a VM, through its node's tunnel (host:port) by HTTP CONNECT.

    The guest is hostile: every message and every block of headers is bounded, nothing is inflated, and the window of a
    stream does not grow. What exceeds that ends the call with RESOURCE_EXHAUSTED or INTERNAL.

    no_proxy in the environment would bypass the tunnel: entry points drop it (see server.run).
    """
    options: tuple[tuple[str, int | str], ...] = (
        ("grpc.http_proxy", f"http://vm:{capability}@{tunnel_address}"),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_metadata_size", MAX_GUEST_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_GUEST_METADATA_BYTES),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 262_144),
        READ_AHEAD,
        ("grpc.use_local_subchannel_pool", 1),
        # A guest that sends GOAWAY has gRPC try again without a pause, in memory that is freed with the call only:
        # 100 MB were seen for four calls. Who calls decides about every further try.
        ("grpc.enable_retries", 0),
        ("grpc.http2.max_frame_size", MAX_FRAME_BYTES),
        ("grpc.default_authority", f"{vm_id}.vm.invalid"),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
    )
    return grpc.aio.insecure_channel(f"{vm_id}.vm.invalid:1", options=options)
