"""What of a tree is sent, and that it arrives as it was."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from sandpool_kvmhost import inside, tree
from sandpool_kvmhost.tree import BadTree, Changes, changes, manifest, pack

ORDER = {"removed": [], "name": "thing", "version": "1.2", "paths": ["src"]}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With a file, a program, a link, and something that git ignores."""
    root = tmp_path / "checkout"
    (root / "src" / "d").mkdir(parents=True)
    (root / "src" / "d" / "a b.py").write_text("x = 1\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("src/d/a b.py")
    (root / ".gitignore").write_text("/build/\n")
    (root / "build").mkdir()
    (root / "build" / "big").write_text("not sent")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "run"], check=True)
    return root


def test_changes_are_what_makes_one_of_the_other() -> None:
    assert changes({}, {"a": "1"}) == Changes(("a",), ())
    assert changes({"a": "1", "b": "1", "c": "1"}, {"b": "2", "c": "1", "d": "1"}) == Changes(("b", "d"), ("a",))
    assert changes({"a": "1"}, {"a": "1"}) == Changes((), ())


def test_a_manifest_moves_with_content_mode_and_target(checkout: Path) -> None:
    before = manifest(checkout)
    assert set(before) == {".gitignore", "link", "run", "src/d/a b.py"}
    assert manifest(checkout) == before
    (checkout / "run").chmod(0o644)
    (checkout / "link").unlink()
    (checkout / "link").symlink_to("run")
    (checkout / "src" / "d" / "a b.py").unlink()
    (checkout / "new").write_text("")
    todo = changes(before, manifest(checkout))
    assert todo == Changes(("link", "new", "run"), ("src/d/a b.py",))


def test_a_file_that_git_knows_and_nobody_has_is_not_sent(checkout: Path) -> None:
    (checkout / "run").unlink()
    assert "run" not in manifest(checkout)


def test_bounds(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MAX_FILES", 3)
    with pytest.raises(BadTree, match="more than 3 files"):
        manifest(checkout)
    monkeypatch.setattr(tree, "MAX_FILES", 4)
    monkeypatch.setattr(tree, "MAX_BYTES", 10)
    with pytest.raises(BadTree):
        manifest(checkout)


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(BadTree, match="not a git repository"):
        manifest(tmp_path)


def sync(order: dict[str, object], source: Path, paths: list[str], target: Path) -> None:
    """As the host does it, by its own program."""
    sent = io.BytesIO()
    pack(source, paths, order, sent)
    command = [sys.executable, inside.__file__, "sync", str(target)]
    subprocess.run(command, input=sent.getvalue(), check=True)


def test_what_is_sent_arrives(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "far" / "copy"
    sync(ORDER, checkout, list(manifest(checkout)), target)
    assert (target / "src" / "d" / "a b.py").read_text() == "x = 1\n"
    assert (target / "run").stat().st_mode & 0o777 == 0o755
    assert (target / "link").readlink() == Path("src/d/a b.py")
    assert not (target / "build").exists()
    sync({**ORDER, "removed": ["run", "never/there"]}, checkout, [], target)
    assert not (target / "run").exists() and (target / "link").is_symlink()


def test_the_tree_is_installed_there(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    (checkout / "src" / "thing.py").write_text(
        "import importlib.metadata\nprint(importlib.metadata.version('thing'))\n"
    )
    for _ in range(2):
        sync(ORDER, checkout, list(manifest(checkout)), target)
    python = target / ".venv" / "bin" / "python"
    assert subprocess.check_output([str(python), "-m", "thing"], text=True, cwd=tmp_path) == "1.2\n"
