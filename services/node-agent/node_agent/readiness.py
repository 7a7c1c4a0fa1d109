"""What the node agent needs to do its work: its tunnel, a hypervisor, and a pool-manager that knows of it."""

from __future__ import annotations

from node_agent.vmm import Acceleration, Vmm
from service_kit.health import Health

TUNNEL, DRIVER, POOL_MANAGER = "tunnel", "driver", "pool-manager"
AGENT = "sandpool.node.v1.NodeAgentService"


def make_health() -> Health:
    """Without a pool-manager the node still answers whoever asks."""
    return Health({TUNNEL: (AGENT,), DRIVER: (AGENT,), POOL_MANAGER: ()})


async def prove_driver(vmm: Vmm, health: Health) -> Acceleration:
    """What this host can do; a hypervisor that is missing is said, and costs no start: VMs that live still do."""
    try:
        acceleration = await vmm.probe()
        await vmm.fingerprint()
    except OSError as error:
        health.set(DRIVER, False, f"{vmm.name}: {error}")
        return Acceleration("none", str(error))
    health.set(DRIVER, True, acceleration.detail)
    return acceleration
