"""Whole files: written so that a reader sees the old one or the new one, read at once, and named in messages.

Every path of the library comes through here: str, bytes or `os.PathLike`, also names that are no UTF-8.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from typing import Any

# Without it what a killed process left is not cleaned up.
fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

FilePath = str | bytes | os.PathLike[str] | os.PathLike[bytes]
_WAYS_OUT = {
    errno.ENAMETOOLONG: "The name is longer than the file system takes: give a shorter one",
    errno.ENOSPC: "Make room there, or choose another path",
    errno.EDQUOT: "Make room there, or choose another path",
}
_WAY_OUT = (
    "Expected an existing folder that you may write to, with room for the file: create it, or choose another path"
)


def atomic_write(path: FilePath, content: bytes) -> None:
    """Write `content` under a temporary name in the same folder, sync both, then rename it to `path`.

    Behind a symbolic link the file that it points to is replaced, not the link. A replaced file's permissions stay, its owner
    too where the process may say so. What a killed process has left of the same file goes.
    OSError, with the path and what to do, if the folder is missing or cannot be written, the name is too long, or `path` is
    read-only, a folder, a device or a pipe; `path` is then untouched and no temporary file stays.
    """
    target = _target(path)
    with _explained(target):
        _remove_leftovers(target)
        handle, temporary = _temporary(target)
        try:
            with os.fdopen(handle, "wb") as stream:  # renamed before it is closed: closing ends the lock
                stream.write(content)
                stream.flush()
                _take_over(stream.fileno(), target)
                os.fsync(stream.fileno())
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    _sync_folder(target)


def check_writable(path: FilePath) -> None:
    """Before work that takes long: OSError where `atomic_write` would raise one in the end. Nothing stays of the trial."""
    target = _target(path)
    with _explained(target):
        handle, temporary = _temporary(target)
        os.close(handle)
        os.unlink(temporary)


def make_folder_of(path: FilePath) -> None:
    """Make the folder of a file that will be written, and those around it. OSError, with what to do, if that is impossible."""
    target = os.path.realpath(name_of(path))
    with _explained(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)


def read_whole(path: FilePath) -> bytes:
    """The content of a regular file. OSError if there is none, or a device or pipe, which may have no end."""
    name = name_of(path)
    if os.path.exists(name) and not os.path.isfile(name):
        kind = "a folder" if os.path.isdir(name) else "a device, pipe or socket"
        raise OSError(errno.EINVAL, f"cannot read {name!r}: it is {kind}. Give the name of a file")
    with open(name, "rb") as stream:
        return stream.read()


def zip_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of an archive. KeyError if there is none; ValueError, before anything is unpacked, if it says that it is larger
    than `most` bytes. It may be stored or deflated: nothing here writes other methods."""
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {info.compress_type}: expected stored or deflated")
    if info.file_size > most:
        raise ValueError(f"{name} unpacks to {info.file_size:,} bytes, expected at most {most:,}")
    with archive.open(info) as stream:
        return stream.read(info.file_size)  # a number: without one it unpacks more than it says


def name_of(path: FilePath) -> str:
    """A path as text, as `os.listdir` gives it. TypeError and ValueError for what cannot be one."""
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"{path!r} is no path: expected the name of a file as str, bytes or os.PathLike.")
    name = os.fsdecode(path)
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is no path: expected the name of a file.")
    return name


def printable(path: FilePath) -> str:
    """A path for people: bytes that are no UTF-8 as \\x.., so that every stream takes it."""
    return os.fsencode(name_of(path)).decode(errors="backslashreplace")


def _target(path: FilePath) -> str:
    """The file that is written, behind symbolic links. OSError if it cannot be replaced."""
    target = os.path.realpath(name_of(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot write {target!r}: it is a folder. Give the name of a file.")
    with _explained(target):
        if not _exists(target):
            return target
        if not os.path.isfile(target):
            raise OSError(
                f"cannot write {target!r}: it is no regular file, and a device, pipe or socket cannot be replaced whole. "
                "Give the name of a file."
            )
        # A rename asks for rights on the folder alone, and root may do everything: the file's own wish counts here.
        if not os.access(target, os.W_OK) or not os.stat(target).st_mode & 0o222:
            raise PermissionError(
                f"cannot write {target!r}: the file is read-only. Allow writing it (chmod u+w), or choose another path."
            )
    return target


def _exists(target: str) -> bool:
    """Whether something has this name. OSError for a name that cannot be one."""
    try:
        os.lstat(target)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def _explained(target: str) -> Iterator[None]:
    """An error of the system gets the path and what to do; our own have both."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        reason = error.strerror or str(error)
        way_out = _WAYS_OUT.get(error.errno, _WAY_OUT)
        raise type(error)(error.errno, f"cannot write {target!r} ({reason}); nothing was written. {way_out}") from error


def _prefix(target: str) -> str:
    """Of the names of all temporary files for this target; short, because names near 255 bytes leave no room."""
    return f".keras_lowbit-{hashlib.sha256(os.fsencode(os.path.basename(target))).hexdigest()[:16]}-"


def _temporary(target: str) -> tuple[int, str]:
    """A new file beside the target, locked as long as it is open, and its name."""
    while True:
        name = os.path.join(os.path.dirname(target), _prefix(target) + secrets.token_hex(8))
        # What replaces a private file is never readable by others.
        mode = 0o600 if _exists(target) else 0o666
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        with contextlib.suppress(OSError):  # a file system without locks
            if not _lock(handle) or not os.fstat(handle).st_nlink:
                os.close(handle)  # another writer has just taken it for a leftover
                continue
        return handle, name


def _lock(handle: int) -> bool:
    """Lock an open file for this process, until it is closed or the process ends. False if another has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(target: str) -> None:
    """Delete the temporary files of killed processes for this target: those that nobody holds locked."""
    if fcntl is None:
        return
    folder, prefix, names = os.path.dirname(target), _prefix(target), list[str]()
    with contextlib.suppress(OSError):  # a folder that may be written and not listed
        names = os.listdir(folder)
    for name in names:
        if not name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):  # it is another user's, or gone already
            handle = os.open(os.path.join(folder, name), os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    os.unlink(os.path.join(folder, name))
            finally:
                os.close(handle)


def _take_over(handle: int, target: str) -> None:
    """Owner and permissions of the file that is replaced, as far as the process may give them."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        return
    for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
        with contextlib.suppress(OSError, AttributeError):
            os.fchown(handle, owner, group)
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(handle, old.st_mode & 0o777)


def _sync_folder(target: str) -> None:
    """So that the new name, too, outlives a power cut; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
