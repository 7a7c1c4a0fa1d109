"""A node agent inside the host as a node of an installation outside. Pure.

Nothing listens beyond loopback on either side: the agent and its tunnel have the same ports in there and out here, and
the pool-manager's socket appears in there, all through SSH.
"""

import json
from dataclasses import dataclass
from pathlib import Path

NODE_ID = "kvmhost"
STATE = Path("/var/lib/sandpool-node")


@dataclass(frozen=True)
class Joining:
    """One node agent's stay. The ports are free on both sides; the key makes names that nobody else has."""

    pool_manager: Path
    agent_port: int
    tunnel_port: int
    key: str

    @property
    def socket(self) -> Path:
        """The pool-manager's, inside."""
        return Path(f"/run/pool-manager-{self.key}.sock")

    def forwards(self) -> list[str]:
        """Options of an SSH connection that lives as long as the agent."""
        outwards = [f"127.0.0.1:{port}:127.0.0.1:{port}" for port in (self.agent_port, self.tunnel_port)]
        options = [word for forward in outwards for word in ("-L", forward)]
        return ["-o", "ControlPath=none", *options, "-R", f"{self.socket}:{self.pool_manager}"]

    def config(self, driver: str) -> str:
        """Of the node agent: it takes its VMs with it."""
        settings = {
            "listen": [f"127.0.0.1:{self.agent_port}"],
            "tunnel_listen": f"127.0.0.1:{self.tunnel_port}",
            "pool_manager": f"unix:{self.socket}",
            "state_dir": str(STATE),
            "cache_dir": "/root/.cache/sandpool",
            "node_id": NODE_ID,
            "driver": driver,
            "destroy_on_exit": True,
        }
        # Strings, lists of them and booleans are the same in TOML.
        return "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())

    def command(self, driver: str) -> list[str]:
        """That runs the agent inside."""
        script = 'printf %s "$1" >"$0" && exec python -m node_agent --config "$0"'
        return ["sh", "-c", script, f"/run/node-agent-{self.key}.toml", self.config(driver)]
