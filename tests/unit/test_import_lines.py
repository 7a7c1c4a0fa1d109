"""Who may import whom: the lines that keep the services apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "service_kit": ROOT / "services/kit/service_kit",
    "scheduler": ROOT / "services/scheduler/scheduler",
    "pool_manager": ROOT / "services/pool-manager/pool_manager",
    "node_agent": ROOT / "services/node-agent/node_agent",
    "guest_agent": ROOT / "guest-agent/guest_agent",
    "sandpool_image": ROOT / "deploy/image/sandpool_image",
    "sandpool_kvmhost": ROOT / "deploy/kvmhost/sandpool_kvmhost",
    "sandpool": ROOT / "sdk/python/sandpool",
}
# Of ours, besides generated code and itself.
ALLOWED = {
    "service_kit": set(),
    "scheduler": {"service_kit"},
    "pool_manager": {"service_kit"},
    "node_agent": {"service_kit", "sandpool_image"},
    "guest_agent": set(),
    "sandpool_image": set(),
    "sandpool_kvmhost": {"sandpool_image"},
    "sandpool": set(),
}
GENERATED = ("sandpool.v1", "sandpool.guest.v1", "sandpool.node.v1", "sandpool.pool.v1")
PURE = (
    "guest_agent/activity.py",
    "guest_agent/output.py",
    "node_agent/drivers/cloud_hypervisor/config.py",
    "node_agent/drivers/cloud_hypervisor/events.py",
    "node_agent/drivers/cloud_hypervisor/mapping.py",
    "node_agent/ledger.py",
    "node_agent/vm_record.py",
    "pool_manager/clock.py",
    "pool_manager/deadlines.py",
    "pool_manager/pool_spec.py",
    "pool_manager/paging.py",
    "pool_manager/happened.py",
    "pool_manager/ulid.py",
    "scheduler/guest_check.py",
    "scheduler/validation.py",
    "sandpool/cli/names.py",
    "service_kit/address.py",
    "service_kit/health.py",
)
IO = {"os", "socket", "subprocess", "time", "random", "secrets", "pathlib", "grpc", "shutil", "tempfile", "signal"}
# subprocess: drivers, host resources, and processes of our own.
MAY_START_PROCESSES = (
    "node_agent/drivers/",
    "node_agent/image_process.py",
    "node_agent/tunnel_process.py",
    "guest_agent/command.py",
    "guest_agent/launch.py",
    "guest_agent/process.py",
    "guest_agent/worker_process.py",
    "sandpool_image/",
    "sandpool_kvmhost/",
    "sandpool/cli/doctor.py",
    "sandpool/cli/vmm_checks.py",
)
MAY_NAME_DRIVERS = ("node_agent/__main__.py", "node_agent/drivers/")


def sources() -> Iterator[tuple[str, str, Path]]:
    for package, directory in PACKAGES.items():
        for path in sorted(directory.rglob("*.py")):
            name = f"{package}/{path.relative_to(directory)}"
            if not (package == "sandpool" and path.stem.endswith(("_pb2", "_pb2_grpc"))):
                yield package, name, path


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


ALL = list(sources())


@pytest.mark.parametrize(("package", "name", "path"), ALL, ids=[name for _, name, _ in ALL])
def test_imports_stay_inside_their_lines(package: str, name: str, path: Path) -> None:
    for module in imports(path):
        top = module.split(".")[0]
        if top in PACKAGES and top != package and not module.startswith(GENERATED):
            assert top in ALLOWED[package], f"{name} imports {module}"
        if top == "subprocess":
            assert name.startswith(MAY_START_PROCESSES), f"{name} starts processes"
        if module.startswith("node_agent.drivers.") and module.split(".")[2] in ("cloud_hypervisor", "qemu", "fake"):
            assert name.startswith(MAY_NAME_DRIVERS), f"{name} names a driver"
        if name in PURE:
            assert top not in IO, f"{name} is pure and imports {module}"


def test_every_pure_module_exists() -> None:
    assert set(PURE) <= {name for _, name, _ in ALL}


@pytest.mark.parametrize(("package", "name", "path"), ALL, ids=[name for _, name, _ in ALL])
def test_nobody_loses_a_cancellation(package: str, name: str, path: Path) -> None:
    """Python 3.11's asyncio.wait_for swallows one that comes together with the result: asyncio.timeout does not."""
    assert "asyncio.wait_for(" not in path.read_text()
