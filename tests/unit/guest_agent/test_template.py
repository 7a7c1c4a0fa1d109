"""What is done before a template is frozen, so that its clones need not: natively."""

import mmap
import subprocess
import sys
from pathlib import Path

from guest_agent.immortal import VERSIONS
from guest_agent.prefault import map_files
from sandpool.guest.v1 import guest_pb2
from sandpool.v1 import execution_pb2 as pb

from .conftest import running

PAGES = 64
# Old objects are not counted any more; new ones are, and go.
COUNTED = """
import os, sys, weakref
from guest_agent.immortal import immortalize
class New: pass
count = immortalize()
before = sys.getrefcount(os.path.join)
users = [os.path.join] * 1000
new = New()
gone = weakref.ref(new)
del new
print(count > 1000, sys.getrefcount(os.path.join) - before, gone() is None)
"""


def resident_bytes(path: Path) -> int:
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(field.split()[1]) * 1024 for field in lines if field.startswith("Rss:"))
    raise AssertionError("it is not mapped")


def test_files_are_mapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * PAGES * mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert resident_bytes(path) == 0
        map_files()
        assert resident_bytes(path) == len(mapped) == PAGES * mmap.PAGESIZE


def test_what_is_immortal_is_not_counted_and_the_rest_is() -> None:
    told = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, check=True, text=True).stdout
    assert told == ("True 0 True\n" if sys.version_info[:2] in VERSIONS else "False 1000 True\n")


async def test_rehearsals_leave_nothing_in_the_session() -> None:
    async with running("--preimport") as agent:
        await agent.guest.Quiesce(guest_pb2.QuiesceRequest())
        await agent.guest.Prepare(guest_pb2.PrepareRequest(vm_id="v", entropy=bytes(256)))
        assert not (await agent.executions.List(pb.ListExecutionsRequest())).executions
        described = await agent.guest.Describe(guest_pb2.DescribeRequest())
        assert (described.activity.calls, described.activity.executions) == (0, 0)
        outcome = await agent.code("print([name for name in globals() if name[0] != '_'], repr(_))\nundefined")
        own = b"['In', 'Out', 'get_ipython', 'exit', 'quit', 'open'] ''\n"
        assert (outcome.stdout, outcome.stderr, outcome.results) == (own, b"", {})
        assert outcome.error is not None and "Cell In[1], line 2" in outcome.error.traceback
