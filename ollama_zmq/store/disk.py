"""What a disk refuses, in words; and files that are written beside their name.

A file that is being written is locked (``flock``) until it is closed, so that another process can tell one that is
still written from one that was left over when its writer was killed: the lock ends with the process.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ollama_zmq.errors import StorageError
from ollama_zmq.units import human_bytes

INCOMING = "-incoming"


@contextmanager
def explained(path: Path, wanted: int | None = None) -> Iterator[None]:
    """Turn what the system says about *path* into an error for a person; *wanted* is how many bytes should go there.

    Raises:
        StorageError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(_words(error, path, wanted), path=str(path), wanted=wanted) from error


def _words(error: OSError, path: Path, wanted: int | None) -> str:
    reason = (error.strerror or str(error)).lower()
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            sizes = "" if wanted is None else f": {human_bytes(wanted)} are wanted, {human_bytes(_free(path))} are free"
            return f"no space left in {path}{sizes}; remove models, or set OLLAMA_MODELS to a folder with more"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"{path} cannot be changed: {reason}; set OLLAMA_MODELS to a folder that can be written"
    return f"{path}: {reason}"


def _free(path: Path) -> int:
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return 0


def is_file(path: Path) -> bool:
    """Whether there is a file at *path* that we may see."""
    with suppress(OSError):
        return path.is_file()
    return False


def check_space(folder: Path, wanted: int) -> None:
    """Refuse what does not fit, before anything is written. Raises StorageError."""
    with explained(folder, wanted):
        if shutil.disk_usage(folder).free < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def create_incoming(folder: Path, prefix: str) -> tuple[int, Path]:
    """A new, locked file in *folder*, made if need be: its descriptor and its path. Raises StorageError."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=INCOMING, dir=folder)
            _lock(handle)
            with suppress(FileNotFoundError):
                if os.stat(name).st_ino == os.fstat(handle).st_ino:
                    return handle, Path(name)
            os.close(handle)  # somebody took it for left over before it was locked


def is_left_over(path: Path) -> bool:
    """Whether nobody writes the incoming file *path*."""
    try:
        with path.open("rb") as file:
            return _lock(file.fileno())
    except OSError:
        return False


def _lock(handle: int) -> bool:
    """Lock an open file; False if somebody else has it, or the system knows no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
