"""An agent that runs as an ordinary process: for tests and benchmarks. It isolates nothing."""

from google.protobuf import timestamp_pb2

from sandpool.guest.v1 import guest_pb2 as pb


class NativeIdentity:
    """The host's kernel stays as it is."""

    def assume(self, request: pb.PrepareRequest) -> None:
        """Nothing to take over but the name, which is the service's."""

    def set_clock(self, now: timestamp_pb2.Timestamp) -> None:
        """The host's is right."""

    def settle(self) -> None:
        """Nothing to freeze."""
