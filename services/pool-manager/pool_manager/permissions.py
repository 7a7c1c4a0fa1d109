"""Permissions to reach VMs: signed while a VM waits warm, so that nobody waits for a signature."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pool_manager.model import Vm
from service_kit import capability

SECONDS = 3600.0


@dataclass(frozen=True)
class Permission:
    """A token, and for how many seconds from now it is good."""

    token: str
    seconds: float


class Permissions:
    """Signs, with a token kept for each VM."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.public_key = key.public_key().public_bytes_raw()
        self._key = key

    def of(self, vm: Vm) -> Permission:
        """Good for half of SECONDS at least."""
        now = time.time()
        if vm.permission is None or vm.permission[1] - now < SECONDS / 2:
            vm.permission = capability.sign(self._key, vm.row.vm_id, now + SECONDS), now + SECONDS
        token, expires_at = vm.permission
        return Permission(token, expires_at - now)
