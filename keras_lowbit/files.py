"""Writing a file so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` under a temporary name in the same folder, sync it, then rename it to `path`.

    Behind a symbolic link the file that it points to is replaced, not the link. OSError, with the path and what to do,
    if the folder is missing or cannot be written, or `path` is a folder, a device or a pipe; `path` is then untouched and
    no temporary file stays.
    """
    target = _target(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=os.path.dirname(target))
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise type(error)(
            error.errno,
            f"cannot write {target!r} ({error.strerror or error}); nothing was written. "
            "Expected an existing folder that you may write to, with room for the file: create it, or choose another path",
        ) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Before work that takes long: OSError where `atomic_write` would raise one in the end. Nothing is written."""
    target = _target(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(
            f"cannot write {target!r}: {folder!r} is no folder that you may write to. Create it, or choose another path."
        )


def _target(path: str | os.PathLike[str]) -> str:
    """The file that is written, behind symbolic links. OSError if something else has that name."""
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise IsADirectoryError(f"cannot write {target!r}: it is a folder. Give the name of a file.")
    if os.path.lexists(target) and not os.path.isfile(target):
        raise OSError(
            f"cannot write {target!r}: it is no regular file, and a device, pipe or socket cannot be replaced whole. Give "
            "the name of a file."
        )
    return target


def _mode(target: str) -> int:
    """Permissions of the file that is replaced, or those a plain `open` would give."""
    with contextlib.suppress(OSError):
        return os.stat(target).st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
