"""Writing a file whole: links are followed, what is no regular file is left alone, nothing stays of killed processes."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from keras_lowbit import files
from keras_lowbit.files import atomic_write, check_writable, printable, read_whole


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


def test_names_of_every_length_kind_and_encoding(tmp_path):
    """255 bytes are the longest name of common file systems; the temporary one must not be longer."""
    folder = os.fsencode(tmp_path)
    for name in (b"n" * 255, b"caf\xe9.bin", "Größe".encode(), b"-", b"a b"):
        for path in (os.path.join(folder, name), os.fsdecode(os.path.join(folder, name))):
            check_writable(path)
            atomic_write(path, name)
            assert read_whole(path) == name
        os.unlink(path)
    assert os.listdir(tmp_path) == []
    assert printable(b"caf\xe9.bin") == "caf\\xe9.bin"


def test_what_cannot_be_a_name_is_refused_in_words(tmp_path):
    for check in (check_writable, lambda path: atomic_write(path, b"new")):
        with pytest.raises(OSError, match=r"cannot write .*name is longer than the file system takes: give a shorter"):
            check(tmp_path / ("n" * 256))
        for path, words in ((None, "None is no path"), (3, "3 is no path")):
            with pytest.raises(TypeError, match=f"{words}: expected the name of a file as str, bytes or os.PathLike"):
                check(path)
        for path in ("", "nul\0l"):
            with pytest.raises(ValueError, match="is no path: expected the name of a file"):
                check(path)
    assert os.listdir(tmp_path) == []


def test_a_read_only_file_stays_also_for_root(tmp_path):
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    path.chmod(0o444)
    for check in (check_writable, lambda path: atomic_write(path, b"new")):
        with pytest.raises(PermissionError, match=r"cannot write .*kept': the file is read-only.*chmod u\+w"):
            check(path)
    assert path.read_bytes() == b"old"
    path.chmod(0o600)
    atomic_write(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owner_and_group_stay(tmp_path):
    path = tmp_path / "theirs"
    path.write_bytes(b"old")
    os.chown(path, 4321, 1234)
    atomic_write(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 1234)


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "new", b"new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


WRITE_SLOWLY = """
import os, sys, time
from keras_lowbit import files
rename = os.replace
def held(old, new):
    print("ready", flush=True)
    sys.stdin.readline()
    rename(old, new)
os.replace = held
files.atomic_write(sys.argv[1], b"slow")
"""


def writer(path):
    """A process that stands just before its rename."""
    script = "import sys; sys.modules['keras_lowbit'] = type(sys)('keras_lowbit'); "  # without its __init__: fast
    script += f"sys.modules['keras_lowbit'].__path__ = [{os.path.dirname(files.__file__)!r}]\n" + WRITE_SLOWLY
    arguments = [sys.executable, "-c", script, os.fspath(path)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    killed, elsewhere, alive = writer(path), writer(other), writer(path)
    for process in (killed, elsewhere):
        process.kill()
        process.communicate()
    assert len(os.listdir(tmp_path)) == 3, "the case shows nothing"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert len(os.listdir(tmp_path)) == 3, "file, what other's writer left, and that of the process alive"
    alive.communicate("\n")
    assert alive.returncode == 0
    assert path.read_bytes() == b"slow"
    atomic_write(other, b"new")
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    contents = [bytes([65 + i]) * 100_000 for i in range(8)]
    threads = [
        threading.Thread(target=lambda c=content: [atomic_write(tmp_path / "f", c) for _ in range(20)])
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() in contents


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a device, pipe"), ("/dev/zero", "a device, pipe")):
        with pytest.raises(OSError, match=f"cannot read .*: it is {kind}.*Give the name of a file"):
            read_whole(path)
    with pytest.raises(FileNotFoundError):
        read_whole(tmp_path / "none")
