"""Settings of the node agent."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """Read once from the file given by --config. Sizes of 0 mean: found out from the host."""

    # Where the pool-manager reaches us.
    listen: tuple[str, ...]
    # VMs, keys and the journal of this node. Sockets live here: keep the path short.
    state_dir: Path
    # Images and templates by content address; may be shared by several nodes of one host.
    cache_dir: Path
    # Address of the pool-manager.
    pool_manager: str
    # "auto" (Cloud Hypervisor where it is proven, else QEMU), "cloud-hypervisor", "qemu", or for tests "fake".
    driver: str = "auto"
    # Cloud Hypervisor's program; empty: looked for in PATH and in cache_dir/bin.
    cloud_hypervisor: str = ""
    # As root: user ids for VMMs, one for each that runs. No account of the host may have one of them, no other agent.
    vm_uid_first: int = 1_900_000_000
    vm_uid_count: int = 65_536
    # Start a VM even where its VMM cannot be confined as it should be, or nobody can tell.
    allow_unconfined: bool = False
    # Defaults to a random id that is kept in state_dir.
    node_id: str = ""
    # End every VM and the tunnel when the agent is told to stop: an embedded installation. Otherwise they stay.
    destroy_on_exit: bool = False
    tunnel_listen: str = "127.0.0.1:0"
    # Virtual CPUs lent per CPU of the host.
    cpu_overcommit: float = 8.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    # Where we and our tunnel serve /metrics, /livez and /readyz: unix:PATH or 127.0.0.1:PORT; "" is nowhere.
    metrics_listen: str = ""
    tunnel_metrics_listen: str = ""
