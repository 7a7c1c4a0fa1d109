"""Signed, expiring permission to open tunnels to one VM: verified offline by the node's tunnel."""

import base64
import json
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# A token holds a 26-character id and a number: anything longer is not one of ours.
MAX_TOKEN_CHARACTERS = 512


class CapabilityRefused(Exception):
    """The token is malformed, expired, for another VM, or signed by nobody we know."""


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def sign(private_key: Ed25519PrivateKey, vm_id: str, expires_at: float) -> str:
    """A token for vm_id, good until expires_at (seconds since the epoch)."""
    payload = json.dumps({"vm": vm_id, "exp": int(expires_at)}, separators=(",", ":")).encode()
    return f"{_encode(payload)}.{_encode(private_key.sign(payload))}"


def verify(keys: Iterable[Ed25519PublicKey], token: str, vm_id: str, now: float) -> None:
    """Return if the token opens vm_id at the time now (seconds since the epoch). Raises CapabilityRefused."""
    if len(token) > MAX_TOKEN_CHARACTERS or token.count(".") != 1:
        raise CapabilityRefused("malformed")
    try:
        payload, signature = map(_decode, token.split("."))
    except ValueError as error:
        raise CapabilityRefused("malformed") from error
    if not any(_signed_by(key, signature, payload) for key in keys):
        raise CapabilityRefused("unknown signature")
    claims = json.loads(payload)  # signed, hence ours
    if claims["vm"] != vm_id:
        raise CapabilityRefused("another vm")
    if claims["exp"] <= now:
        raise CapabilityRefused("expired")


def _signed_by(key: Ed25519PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True
