"""Blobs: files named by the sha256 of their content, ``blobs/sha256-<64 hex>``.

A blob appears under its name whole or not at all: it is written beside, flushed to the disk, and renamed
when its digest is known to be right. A local file is cloned where the file system can (btrfs, XFS, APFS
share the blocks until one side changes) and copied elsewhere; never hard-linked, because somebody who
rewrites the original in place would then change a blob under its digest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ollama_zmq.errors import ModelFileError, RequestError, StorageError
from ollama_zmq.store.disk import check_space, create_incoming, explained, is_file

CHUNK_NBYTES = 1 << 20
FICLONE = 0x40049409
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


def parse_digest(text: str) -> str:
    """*text* as ``sha256:<64 lower-case hex>``; a dash instead of the colon is accepted.

    Raises:
        RequestError: it is no such digest.
    """
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise RequestError("invalid digest format", digest=text)
    return f"sha256:{match[1].lower()}"


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob in the store.

    Attributes:
        created: False if the store had it already.
    """

    digest: str
    nbytes: int
    created: bool


class Blobs:
    """The folder of blobs, made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the blob *digest* is or would be. Raises RequestError if *digest* is none."""
        return self.folder / parse_digest(digest).replace(":", "-")

    def has(self, digest: str) -> bool:
        """Whether the blob is here. Raises RequestError if *digest* is none."""
        return is_file(self.path(digest))

    def nbytes(self, digest: str) -> int:
        """Size of a blob that is here.

        Raises:
            ModelFileError: it is missing.
        """
        try:
            return self.path(digest).stat().st_size
        except OSError as error:
            raise self._unreadable(digest, error) from None

    def read(self, digest: str) -> bytes:
        """Content of a small blob. Raises ModelFileError if it is missing or cannot be read."""
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            raise self._unreadable(digest, error) from None

    def _unreadable(self, digest: str, error: OSError) -> ModelFileError:
        if isinstance(error, FileNotFoundError):
            return ModelFileError(f"blob {digest} is missing from {self.folder}", digest=digest)
        return ModelFileError(f"{self.path(digest)}: cannot be read: {error.strerror or error}", digest=digest)

    def incoming(self, digest: str | None = None, nbytes: int | None = None) -> Incoming:
        """Begin a blob whose bytes come piece by piece; *digest* and *nbytes* are what it must have, if that is known.

        Raises:
            StorageError: the folder cannot be written, or has no room for *nbytes*.
        """
        return Incoming(self, None if digest is None else parse_digest(digest), nbytes)

    def add(self, chunks: Iterable[bytes], digest: str | None = None) -> Blob:
        """Store *chunks* as one blob. Raises RequestError if its digest is not *digest*, StorageError."""
        with self.incoming(digest) as blob:
            for chunk in chunks:
                blob.write(chunk)
            return blob.commit()

    def add_file(
        self, path: Path, digest: str | None = None, on_progress: Callable[[int, int], None] | None = None
    ) -> Blob:
        """Store a copy of the file at *path*; ``on_progress(done, total)`` counts bytes.

        Raises:
            RequestError: the file cannot be read, or its digest is not *digest*.
            StorageError: there is no room for it, or the store cannot be written.
        """
        try:
            source = path.open("rb")
        except OSError as error:
            raise RequestError(f"{path}: cannot be read: {error.strerror or error}", path=str(path)) from error
        with source, self.incoming(digest) as blob:
            blob.copy(source, on_progress)
            return blob.commit()

    def remove(self, digest: str) -> None:
        """Delete the blob, if it is here. Raises StorageError if that is not allowed."""
        with explained(self.path(digest)):
            self.path(digest).unlink(missing_ok=True)


class Incoming:
    """A blob that is being written; a context manager that leaves nothing behind unless :meth:`commit` was called."""

    def __init__(self, blobs: Blobs, expected: str | None, wanted: int | None = None) -> None:
        handle, self._path = create_incoming(blobs.folder, "sha256-")
        self.nbytes = 0
        self._blobs = blobs
        self._expected = expected
        self._wanted = wanted
        self._file = os.fdopen(handle, "r+b")
        self._hash = hashlib.sha256()
        try:
            check_space(blobs.folder, wanted or 0)
        except StorageError:
            self.__exit__(None, None, None)
            raise

    def write(self, chunk: bytes | memoryview) -> None:
        """Append *chunk*. Raises StorageError, with the bytes of the whole blob if they are known."""
        with explained(self._blobs.folder, self._wanted or self.nbytes + len(chunk)):
            self._file.write(chunk)
        self._hash.update(chunk)
        self.nbytes += len(chunk)

    def copy(self, source: IO[bytes], on_progress: Callable[[int, int], None] | None = None) -> None:
        """Append all of the open file *source*, which must be the blob's only content."""
        total = self._wanted = os.fstat(source.fileno()).st_size
        cloned = share_blocks(source, self._file)
        if not cloned:
            check_space(self._blobs.folder, total)
        reader = self._file if cloned else source
        while chunk := reader.read(CHUNK_NBYTES):
            if cloned:
                self._hash.update(chunk)
                self.nbytes += len(chunk)
            else:
                self.write(chunk)
            if on_progress is not None:
                on_progress(self.nbytes, total)

    def commit(self) -> Blob:
        """Give the blob its name.

        Raises:
            RequestError: its digest is not the expected one; nothing is kept.
            StorageError: the disk does not take it; nothing is kept.
        """
        digest = f"sha256:{self._hash.hexdigest()}"
        if self._expected not in (None, digest):
            raise RequestError(f'digest mismatch, expected "{self._expected}", got "{digest}"', digest=digest)
        target = self._blobs.path(digest)
        created = not target.exists()
        if created:
            with explained(self._blobs.folder, self._wanted or self.nbytes):
                self._file.flush()
                os.fsync(self._file.fileno())
                self._path.chmod(0o644)
                self._path.replace(target)
        return Blob(digest, self.nbytes, created)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what was not written cannot be flushed now
            self._file.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def share_blocks(source: IO[bytes], target: IO[bytes]) -> bool:
    """Make the empty *target* share the blocks of *source*; False where the file system cannot."""
    try:
        import fcntl

        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except (ImportError, OSError):
        return False
    return True
