"""Blobs that no manifest names, and when they go.

What a deleted or replaced model named goes at once, unless another names it. What nobody ever named, an upload whose
model was not made, goes an hour after it was last touched, and what a killed process has left half written at the next
start. A blob that a damaged manifest mentions stays: every digest in a manifest's bytes counts, readable or not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ollama_zmq.errors import ModelNotFound
from ollama_zmq.formats.manifest import MANIFEST_LIST_TYPE
from ollama_zmq.store.blobs import Blobs, parse_digest
from ollama_zmq.store.disk import INCOMING, explained, is_left_over
from ollama_zmq.store.manifests import Manifests

KEEP_UNREFERENCED_S = 3600.0
_ANY_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")
_BLOB_NAME = re.compile(r"sha256-[0-9a-f]{64}")


def digests_in(raw: bytes) -> set[str]:
    """Every digest that a manifest with the bytes *raw* mentions."""
    return {parse_digest(text) for text in _ANY_DIGEST.findall(raw.decode("utf-8", "replace"))}


def referenced(blobs: Blobs, manifests: Manifests) -> set[str]:
    """Every digest that a manifest names, its own, and those in the manifests it lists."""
    found: set[str] = set()
    for name in manifests.names():
        with suppress(ModelNotFound):  # another process has deleted it since
            raw, _ = manifests.read(name)
            found |= _named_by(raw, blobs)
    return found


def _named_by(raw: bytes, blobs: Blobs) -> set[str]:
    named = digests_in(raw) | {f"sha256:{hashlib.sha256(raw).hexdigest()}"}
    if MANIFEST_LIST_TYPE.encode() in raw:
        named |= {inner for digest in named if blobs.has(digest) for inner in digests_in(blobs.read(digest))}
    return named


def remove_unreferenced(candidates: Iterable[str], blobs: Blobs, manifests: Manifests) -> None:
    """Delete those of *candidates*, digests, that no manifest names. Raises StorageError."""
    if found := set(candidates):
        for digest in found - referenced(blobs, manifests):
            blobs.remove(digest)


def prune(blobs: Blobs, manifests: Manifests, now: float) -> tuple[str, ...]:
    """Delete what nobody needs as of *now*, in seconds since the epoch; return the names of the files that went.

    Raises:
        StorageError: the store cannot be written.
    """
    known = referenced(blobs, manifests)
    waste = [path for path in sorted(blobs.folder.iterdir()) if _is_waste(path, known, now)]
    waste += manifests.left_over()
    for path in waste:
        with explained(path):
            path.unlink(missing_ok=True)
    return tuple(path.name for path in waste)


def _is_waste(path: Path, known: set[str], now: float) -> bool:
    """Whether a file among the blobs is to go; *known* are the digests that manifests name."""
    if _BLOB_NAME.fullmatch(path.name) and path.name.replace("-", ":") in known:
        return False
    if path.name.endswith(INCOMING):
        return path.is_file() and is_left_over(path)
    with suppress(FileNotFoundError):  # another process has moved it since
        return path.is_file() and now - path.stat().st_mtime > KEEP_UNREFERENCED_S
    return False
