"""What the node knows of one VM: its states, and the record that finds it again. Pure."""

import json
from dataclasses import asdict, dataclass, replace

from sandpool.node.v1 import node_pb2 as pb
from sandpool.v1 import session_pb2

P, R, S, D = pb.VM_STATE_PROVISIONING, pb.VM_STATE_READY, pb.VM_STATE_SEALED, pb.VM_STATE_DESTROYED

# A VM that fails is destroyed, never repaired; only a seal can be taken back.
TRANSITIONS: dict[int, frozenset[int]] = {
    P: frozenset({R, D}),
    R: frozenset({S, D}),
    S: frozenset({R, D}),
    D: frozenset(),
}


class IllegalTransition(Exception):
    """Our fault: nothing was changed."""


@dataclass(frozen=True)
class VmRecord:
    """Written before the VM exists. expires_at is in seconds since the boot named by boot_id.

    end_reason is set as soon as it is decided that the VM ends; what is left of it then is destroyed.
    """

    vm_id: str
    template_id: str
    vcpus: int
    memory_bytes: int
    disk_bytes: int
    max_processes: int
    background_is_activity: bool
    max_lifetime_seconds: float
    boot_id: str
    expires_at: float
    created_at: float
    state: pb.VmState.ValueType = P
    end_reason: session_pb2.EndReason.ValueType = session_pb2.END_REASON_UNSPECIFIED
    detail: str = ""

    def become(self, state: pb.VmState.ValueType) -> "VmRecord":
        """The record in its next state. Raises IllegalTransition."""
        if state not in TRANSITIONS[self.state]:
            raise IllegalTransition(f"{self.vm_id}: {self.state} to {state}")
        return replace(self, state=state)

    def ending(self, reason: session_pb2.EndReason.ValueType, detail: str) -> "VmRecord":
        """The record of a VM whose end has been decided."""
        return replace(self, end_reason=reason, detail=detail[:1024])

    def same_request(self, other: "VmRecord") -> bool:
        """Whether both were asked for with the same words."""
        asked = ("vm_id", "template_id", "vcpus", "memory_bytes", "disk_bytes", "max_processes")
        also = ("background_is_activity", "max_lifetime_seconds")
        return all(getattr(self, name) == getattr(other, name) for name in asked + also)

    def to_json(self) -> str:
        """For the journal."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "VmRecord":
        """From the journal. Raises ValueError or TypeError."""
        return cls(**json.loads(text))

    def to_proto(self) -> pb.Vm:
        """For the pool-manager."""
        vm = pb.Vm(vm_id=self.vm_id, state=self.state, template_id=self.template_id)
        vm.end_reason, vm.detail = self.end_reason, self.detail
        vm.created_at.FromNanoseconds(int(self.created_at * 1e9))
        return vm
