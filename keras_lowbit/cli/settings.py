"""The settings of a run whose state is on the disk: another run must not go on from it."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from absl import flags

from keras_lowbit.files import printable, read_whole


def read_fields(path: str, remedy: str) -> dict[str, Any] | None:
    """A JSON object; None without a file. flags.Error, with the remedy, for a file that holds none."""
    if not os.path.exists(path):
        return None
    try:
        found = json.loads(read_whole(path))
    except ValueError as error:
        raise flags.Error(f"{printable(path)} holds no settings of a run ({error}). {remedy}") from error
    if not isinstance(found, dict):
        raise flags.Error(f"{printable(path)} holds no settings of a run, but a {type(found).__name__}. {remedy}")
    return found


def check_same(place: str, found: Mapping[str, Any], wanted: Mapping[str, Any], remedy: str) -> None:
    """flags.Error, with their names and the remedy, if settings differ. place: where they are, for the message."""
    if other := [name for name in wanted if found.get(name) != json.loads(json.dumps(wanted[name]))]:
        raise flags.Error(f"{place} holds a run with other {', '.join(other)}. Give the same flags to go on, {remedy}")


def digest_of(path: str) -> str | None:
    """The SHA-256 of a file, which says whether a name still means the same model; None for what is no file."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
