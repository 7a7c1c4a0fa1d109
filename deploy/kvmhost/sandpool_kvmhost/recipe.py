"""The recipe of the emulated host: what a node agent and the tests need on Debian's layer, and an SSH server."""

import shutil
import sys

from sandpool_image.initramfs import build_initramfs
from sandpool_image.recipe import Bench, install_wheels, main, pack, take_kernel
from sandpool_image.steps import Progress, run
from sandpool_kvmhost.inputs import MODULES, PYTHON

# In the order of PATH inside.
OURS = "opt/kvmhost"
# One connection carries everything, and who may log in is settled: no look-ups, no penalties.
SSHD_CONFIG = """
ListenAddress 0.0.0.0
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxSessions 100
PrintMotd no
"""


def _recipe(bench: Bench, progress: Progress) -> None:
    progress("installing Python packages", 0.7)
    packages = bench.root / f"usr/local/lib/python{PYTHON}/dist-packages"
    install_wheels(bench.files["requirements"].decode().split("\n"), packages, PYTHON)
    run(
        ["chroot", str(bench.root), "python3", "-m", "compileall", "-q", f"/usr/local/lib/python{PYTHON}"], "compileall"
    )
    ours = bench.root / OURS
    ours.mkdir(parents=True)
    for name in ("start.sh", "inside.py"):
        (ours / name).write_bytes(bench.files[name])
        (ours / name).chmod(0o755)
    _make_keys(bench)
    take_kernel(bench)
    (bench.out / "initramfs").write_bytes(build_initramfs(bench.root, bench.files["init.sh"], bench.work, MODULES))
    progress("packing the host", 0.85)
    for unwanted in ("usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(bench.root / unwanted, ignore_errors=True)
    pack(bench)


def _make_keys(bench: Bench) -> None:
    """Fresh for each image: one that lets in, one by which the host is known."""
    ssh = bench.root / "etc/ssh"
    for stale in ssh.glob("ssh_host_*"):
        stale.unlink()
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kvmhost", "-f"]
    run([*keygen, str(ssh / "ssh_host_ed25519_key")], "ssh-keygen")
    run([*keygen, str(bench.out / "key")], "ssh-keygen")
    public = (ssh / "ssh_host_ed25519_key.pub").read_text()
    (bench.out / "known_hosts").write_text(f"kvmhost {public}")
    (ssh / "sshd_config").write_text(SSHD_CONFIG)
    home = bench.root / "root/.ssh"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "authorized_keys").write_text((bench.out / "key.pub").read_text())


if __name__ == "__main__":
    sys.exit(main(_recipe))
