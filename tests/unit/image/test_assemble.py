"""Putting an image together is a process of its own: what goes wrong in there is told, and nothing is left."""

import tarfile
from pathlib import Path

import pytest

from sandpool_image.assemble import assemble
from sandpool_image.steps import BuildFailed, run


def test_a_layer_that_is_no_archive_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "debian.tar").write_text("no archive" * 1000)
    with pytest.raises(BuildFailed, match=r"^tar: "):
        assemble(tmp_path / "debian.tar", {}, tmp_path / "images" / "x", lambda *_: None)
    assert list((tmp_path / "images").iterdir()) == []


def test_what_a_killed_build_has_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "images" / ".build-old" / "root").mkdir(parents=True)
    said: list[str] = []
    with pytest.raises(BuildFailed):
        assemble(tmp_path / "none.tar", {}, tmp_path / "images" / "x", lambda message, _: said.append(message))
    assert (said, list((tmp_path / "images").iterdir())) == (["unpacking"], [])


def test_files_of_other_users_are_no_hindrance(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "debian.tar", "w") as archive:
        entry = tarfile.TarInfo("./of-somebody")
        entry.uid, entry.gid, entry.type = 42, 42, tarfile.DIRTYPE
        archive.addfile(entry)
    with pytest.raises(BuildFailed, match="opt/sandpool/start"):  # of which there is none: it got beyond unpacking
        assemble(tmp_path / "debian.tar", {}, tmp_path / "images" / "x", lambda *_: None)
    assert list((tmp_path / "images").iterdir()) == []


def test_a_tool_that_is_missing_is_named() -> None:
    with pytest.raises(BuildFailed, match=r"packing: mkfs\.nothing is not installed"):
        run(["mkfs.nothing"], "packing")
