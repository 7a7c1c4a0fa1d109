"""VM ids: ULIDs in lower case. Pure: time and randomness come in."""

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def encode(milliseconds: int, randomness: bytes) -> str:
    """26 characters: 48 bits of time, then 80 bits (10 bytes) of randomness."""
    value = (milliseconds & ((1 << 48) - 1)) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join(ALPHABET[value >> shift & 31] for shift in range(125, -5, -5))
