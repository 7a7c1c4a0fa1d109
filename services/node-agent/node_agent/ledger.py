"""What this node has lent, and to which VM: hard limits. Pure."""

from dataclasses import dataclass

# Of a VMM process and its devices, besides the guest's memory.
VMM_OVERHEAD_BYTES = 64 << 20


@dataclass(frozen=True)
class Amount:
    """Of every resource that is counted."""

    cpu_millis: int
    memory_bytes: int
    disk_bytes: int


class NodeFull(Exception):
    """Not enough left; the message names the resource and the numbers."""


def cost(vcpus: int, memory_bytes: int, disk_bytes: int) -> Amount:
    """What one VM of this size takes."""
    return Amount(vcpus * 1000, memory_bytes + VMM_OVERHEAD_BYTES, disk_bytes)


class Ledger:
    """Reservations by vm id. One owner: the node agent's event loop."""

    def __init__(self, capacity: Amount) -> None:
        self.capacity = capacity
        self._lent: dict[str, Amount] = {}

    @property
    def reserved(self) -> Amount:
        """The sum of what is lent."""
        lent = self._lent.values()
        return Amount(
            sum(amount.cpu_millis for amount in lent),
            sum(amount.memory_bytes for amount in lent),
            sum(amount.disk_bytes for amount in lent),
        )

    def reserve(self, vm_id: str, amount: Amount) -> None:
        """Lend to a VM before anything of it exists. Raises NodeFull."""
        reserved = self.reserved
        for resource in ("cpu_millis", "memory_bytes", "disk_bytes"):
            wanted, left = getattr(amount, resource), getattr(self.capacity, resource) - getattr(reserved, resource)
            if wanted > left:
                raise NodeFull(f"{resource}: {wanted} wanted, {max(0, left)} left")
        self._lent[vm_id] = amount

    def adopt(self, vm_id: str, amount: Amount) -> None:
        """Count a VM that is there already, whatever the limits say."""
        self._lent[vm_id] = amount

    def release(self, vm_id: str) -> None:
        """Once its destruction is confirmed. Idempotent."""
        self._lent.pop(vm_id, None)
