# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat

import pytest

from licag3d.errors import InputError
from licag3d.io.atomic import check_output_folder, staged_folder, write_bytes, write_text


def test_write_replaces_whole_files_and_leaves_no_rubbish(tmp_path):
    write_text(tmp_path / "a.txt", "größe")
    assert (tmp_path / "a.txt").read_bytes() == "größe".encode()
    write_text(tmp_path / "a.txt", "name\udcff")  # as the file system hands over undecodable names
    assert (tmp_path / "a.txt").read_bytes() == b"name?"
    write_bytes(tmp_path / "a.txt", b"2")
    assert (tmp_path / "a.txt").read_bytes() == b"2" and os.listdir(tmp_path) == ["a.txt"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a", b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_check_creates_nothing(tmp_path):
    wish = tmp_path / "deep" / "deeper"
    assert check_output_folder(wish) == wish
    assert check_output_folder(tmp_path) == tmp_path
    assert os.listdir(tmp_path) == []


def test_check_refuses_files_and_unwritable_places(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(InputError, match="not a folder"):
        check_output_folder(tmp_path / "file" / "below")
    with pytest.raises(InputError, match="cannot be used"):
        check_output_folder("a\0b")
    with pytest.raises(InputError, match="cannot be written|not a folder"):
        check_output_folder("/proc/self/licag3d-out")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("licag3d.io.atomic.tempfile.mkstemp", refuse)
    with pytest.raises(InputError, match="Permission denied") as caught:
        check_output_folder(tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_stage_delivers_all_or_nothing(tmp_path):
    out = tmp_path / "out"
    with staged_folder(out) as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
        assert sorted(os.listdir(out)) == [stage.name]
    assert sorted(os.listdir(out)) == ["a", "b"]
    (out / "mine.txt").write_text("keep")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), staged_folder(out) as stage:
            (stage / "a").write_text("broken")
            (stage / "c").write_text("3")
            raise error
    assert sorted(os.listdir(out)) == ["a", "b", "mine.txt"]
    assert (out / "a").read_text() == "1"


def test_stage_removes_only_the_folders_it_made(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "x" / "y" / "z"):
        raise RuntimeError
    assert os.listdir(tmp_path) == ["x"] and os.listdir(tmp_path / "x") == []


def test_stage_does_not_follow_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "outside").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(tmp_path / "outside")
    with staged_folder(out) as stage:
        (stage / "a").write_text("new")
    assert (tmp_path / "outside").read_text() == "precious"
    assert not (out / "a").is_symlink() and (out / "a").read_text() == "new"


def test_stage_refuses_to_replace_a_folder(tmp_path):
    (tmp_path / "a" / "inner").mkdir(parents=True)
    with pytest.raises(InputError, match="is a folder"), staged_folder(tmp_path) as stage:
        (stage / "a").write_text("new")
        (stage / "0").write_text("new")
    assert os.listdir(tmp_path) == ["a"]
