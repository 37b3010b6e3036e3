"""Writing a file whole: links are followed, what is no regular file is left alone."""

import os
import stat

import pytest

from keras_lowbit.files import atomic_write, check_writable


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target, link, second = folder / "target", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(os.path.join("elsewhere", "target"))
    second.symlink_to(link)
    atomic_write(second, b"new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(folder) == ["target"]


def test_a_link_to_nothing_makes_what_it_points_to(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("target")
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_what_is_no_regular_file_is_refused_also_behind_a_link(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    for path in (pipe, link):
        with pytest.raises(OSError, match=r"cannot write .*pipe.*: it is no regular file.* Give the name of a file"):
            atomic_write(path, b"new")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_links_in_a_circle_and_folders_are_refused(tmp_path):
    link, folder = tmp_path / "link", tmp_path / "folder"
    link.symlink_to("link")
    folder.mkdir()
    for path, words in ((link, "no regular file"), (folder, "it is a folder")):
        with pytest.raises(OSError, match=words):
            atomic_write(path, b"new")
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]


def test_what_could_not_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new")
    for path in (tmp_path / "none" / "x", tmp_path / "file" / "x", tmp_path):
        with pytest.raises(OSError, match="cannot write"):
            check_writable(path)
    assert os.listdir(tmp_path) == ["file"]
