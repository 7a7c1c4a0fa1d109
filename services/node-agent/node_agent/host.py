"""Facts about this host."""

import os
import shutil
from pathlib import Path

from node_agent.ledger import Amount

# Left to the host itself.
MEMORY_SHARE = 0.8
DISK_SHARE = 0.9


def capacity(state_dir: Path, cpu_overcommit: float, memory_bytes: int, disk_bytes: int) -> Amount:
    """What may be lent; sizes of 0 are found out."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Amount(
        int((os.cpu_count() or 1) * 1000 * cpu_overcommit),
        memory_bytes or int(pages * MEMORY_SHARE),
        disk_bytes or int(shutil.disk_usage(state_dir).free * DISK_SHARE),
    )
