"""Whether a VMM has mapped its guest's memory as it was told: an old one copies it without a word. Pure."""


class WrongMapping(Exception):
    """A clone whose memory is not a private mapping of the template's file."""


def check_private(maps: str, inode: int, size: int) -> None:
    """maps is the text of /proc/PID/maps; all of the file, and each part privately. Raises WrongMapping."""
    mapped = 0
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 5 or fields[4] != str(inode):
            continue
        if fields[1] != "rw-p":
            raise WrongMapping(f"the template's memory is mapped {fields[1]}")
        begin, end = (int(address, 16) for address in fields[0].split("-"))
        mapped += end - begin
    if mapped != size:
        raise WrongMapping(f"{mapped} bytes of the template's memory are mapped, not {size}")
