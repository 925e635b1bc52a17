"""A disk that is full or cannot be written is said in words, and nothing half written stays."""

import errno
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ollama_zmq.errors import StorageError
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.disk import create_incoming, explained, is_left_over
from ollama_zmq.store.models import Store

LEAVE_BEHIND = """
import os, sys
from pathlib import Path
from ollama_zmq.store.disk import create_incoming
create_incoming(Path(sys.argv[1]), sys.argv[2])
os._exit(1)
"""


@pytest.fixture
def store(tmp_path, tiny_gguf):
    store = Store(tmp_path / "models")
    store.create("tiny", Recipe(files={"tiny.gguf": store.blobs.add_file(tiny_gguf).digest}))
    return store


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left in {path}: 5 GB are wanted, 1 KB are free; remove models, or set OLLAMA_MODELS"),
        (errno.EDQUOT, "no space left in {path}: 5 GB are wanted"),
        (errno.EROFS, "{path} cannot be changed: read-only file system; set OLLAMA_MODELS to a folder that can be"),
        (errno.EACCES, "{path} cannot be changed: permission denied"),
        (errno.EIO, "{path}: input/output error"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(tmp_path, monkeypatch, number, words):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError) as caught, explained(tmp_path, 5_000_000_000):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(words.format(path=tmp_path))
    assert caught.value.facts == {"path": str(tmp_path), "wanted": 5_000_000_000}


def files_of(store):
    return sorted(store.root.rglob("*"))


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize(
    "change",
    [
        lambda store: store.create("tiny", Recipe(from_="tiny", template="T", system="S", license=("L",))),
        lambda store: store.create("other", Recipe(from_="tiny", system="S")),
        lambda store: store.copy("tiny", "copied"),
        lambda store: store.blobs.add([b"content"]),
    ],
    ids=["create again", "create", "copy", "blob"],
)
def test_a_change_the_disk_does_not_take_leaves_the_store_as_it_was(store, monkeypatch, change, call):
    before, tiny = files_of(store), store.get("tiny")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (type(store.root), "replace")), full)
    with pytest.raises(StorageError, match="no space left in"):
        change(store)
    assert (files_of(store), store.get("tiny").digest) == (before, tiny.digest)


@pytest.mark.parametrize("n_written", [1, 2, 3])
def test_a_layer_that_does_not_fit_takes_those_before_it_with_it(store, monkeypatch, n_written):
    before, fsync, calls = files_of(store), os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > n_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left in"):
        store.create("other", Recipe(from_="tiny", template="T", system="S", license=("L",)))
    assert files_of(store) == before


def test_a_manifest_that_does_not_fit_takes_its_layers_with_it(store, monkeypatch):
    before, replace = files_of(store), type(store.root).replace

    def full(path, target):
        if "manifests" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(type(store.root), "replace", full)
    with pytest.raises(StorageError, match="no space left in"):
        store.create("other", Recipe(from_="tiny", template="T", system="S"))
    assert files_of(store) == before


def test_what_does_not_fit_is_refused_before_it_is_written(store, monkeypatch, tiny_gguf):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    before = files_of(store)
    with pytest.raises(StorageError, match="5 GB are wanted"):
        store.blobs.incoming(nbytes=5_000_000_000)
    with pytest.raises(StorageError, match="1 KB are free"):
        store.blobs.add_file(tiny_gguf)
    assert files_of(store) == before


def test_a_model_that_may_not_be_removed_stays_whole(store, monkeypatch):
    def read_only(*_args, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    before = files_of(store)
    monkeypatch.setattr(type(store.root), "unlink", read_only)
    with pytest.raises(StorageError, match="cannot be changed: read-only file system"):
        store.delete("tiny")
    assert files_of(store) == before


def test_a_store_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/blobs"):
        Store(tmp_path / "file").blobs.add([b"x"])
    assert Store(tmp_path / "file").list() == []


def test_what_a_killed_process_left_goes_at_once_and_what_is_written_stays(store):
    written = store.blobs.incoming()
    manifests = store.root / "manifests/registry.ollama.ai/library/tiny"
    before = files_of(store)
    for folder, prefix in ((store.blobs.folder, "sha256-"), (manifests, ".")):
        command = [sys.executable, "-P", "-c", LEAVE_BEHIND, str(folder), prefix]
        assert subprocess.run(command, check=False).returncode == 1
    left = set(files_of(store)) - set(before)
    assert len(left) == 2
    assert set(store.prune(now=0.0)) == {path.name for path in left}
    assert files_of(store) == before
    with written:
        written.write(b"content")
        assert written.commit().created


def test_a_file_is_left_over_when_nobody_has_it_open(tmp_path):
    handle, path = create_incoming(tmp_path, "x")
    assert not is_left_over(path)
    os.close(handle)
    assert is_left_over(path)
