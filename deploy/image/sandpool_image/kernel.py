"""The decompressed kernel out of a bzImage: hypervisors enter it by its PVH note, and do not unpack it at each boot."""

import lzma
import struct
import subprocess
import zlib

_MAGICS = (b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x1f\x8b\x08")


class NoKernel(Exception):
    """The file holds no compressed ELF kernel."""


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (zstd, xz or gzip). Raises NoKernel."""
    if image[0x202:0x206] != b"HdrS":
        raise NoKernel("not a bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = image[begin : begin + length]
    if payload.startswith(_MAGICS[0]):
        # The last four bytes are the unpacked size, not zstd.
        kernel = subprocess.run(["zstd", "-dcq"], input=payload[:-4], capture_output=True, check=True).stdout
    elif payload.startswith(_MAGICS[1]):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(_MAGICS[2]):
        kernel = zlib.decompressobj(31).decompress(payload)
    else:
        raise NoKernel(f"unknown compression {payload[:4].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise NoKernel("the payload is no ELF file")
    return kernel
