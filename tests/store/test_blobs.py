import hashlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_zmq.errors import ModelFileError, RequestError
from ollama_zmq.store.blobs import Blob, Blobs, parse_digest


def digest_of(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def blobs(tmp_path):
    return Blobs(tmp_path / "blobs")


def files_in(blobs):
    return sorted(os.listdir(blobs.folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(chunks=st.lists(st.binary(max_size=50), max_size=4))
def test_what_goes_in_comes_out_under_its_digest(blobs, chunks):
    content = b"".join(chunks)
    known = blobs.has(digest_of(content))
    assert blobs.add(chunks) == Blob(digest_of(content), len(content), created=not known)
    assert blobs.read(digest_of(content)) == content
    assert blobs.nbytes(digest_of(content)) == len(content)


def test_the_layout_is_ollamas(blobs):
    blob = blobs.add([b"hello"])
    assert files_in(blobs) == [blob.digest.replace(":", "-")]
    assert blobs.path(blob.digest).stat().st_mode & 0o777 == 0o644


def test_a_second_time_nothing_is_created(blobs):
    assert blobs.add([b"x"]).created
    assert not blobs.add([b"x"]).created
    assert len(files_in(blobs)) == 1


def test_another_content_than_promised_is_refused_and_leaves_nothing(blobs):
    promised = digest_of(b"promised")
    with pytest.raises(RequestError) as caught:
        blobs.add([b"sent"], promised)
    assert str(caught.value) == f'digest mismatch, expected "{promised}", got "{digest_of(b"sent")}"'
    assert files_in(blobs) == []


def test_an_upload_that_breaks_off_leaves_nothing(blobs):
    def broken():
        yield b"half"
        assert len(files_in(blobs)) == 1
        raise ConnectionError

    with pytest.raises(ConnectionError):
        blobs.add(broken())
    assert files_in(blobs) == []


@pytest.mark.parametrize("cloned", [False, True])
def test_a_local_file_is_copied_not_shared(blobs, tmp_path, monkeypatch, cloned):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights" * 500_000)
    if cloned:  # as a file system that shares blocks does it

        def clone(source, target):
            target.write(source.read())
            target.seek(0)
            return True

        monkeypatch.setattr("ollama_zmq.store.blobs.share_blocks", clone)
    seen = []
    blob = blobs.add_file(source, on_progress=lambda done, total: seen.append((done, total)))
    assert blob == Blob(digest_of(b"weights" * 500_000), 3_500_000, created=True)
    assert seen[-1] == (3_500_000, 3_500_000)
    source.write_bytes(b"rewritten in place")
    assert blobs.read(blob.digest) == b"weights" * 500_000


def test_a_local_file_that_is_not_there_is_named(blobs, tmp_path):
    with pytest.raises(RequestError, match=r"absent\.gguf: cannot be read: No such file or directory"):
        blobs.add_file(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "g" * 64, "md5:" + "0" * 64,
             "sha256:../" + "0" * 61, "sha256-" + "0" * 64 + "\n", "../../etc/passwd"]
)  # fmt: skip
def test_what_is_no_digest_is_refused(blobs, text):
    with pytest.raises(RequestError, match=r"^invalid digest format$"):
        blobs.path(text)


def test_digests_are_one_in_any_case_and_with_a_dash():
    assert parse_digest("sha256-" + "AB" * 32) == parse_digest("sha256:" + "ab" * 32) == "sha256:" + "ab" * 32


def test_a_missing_blob_is_named(blobs):
    digest = digest_of(b"absent")
    assert not blobs.has(digest)
    for read in (blobs.read, blobs.nbytes):
        with pytest.raises(ModelFileError, match=f"blob {digest} is missing"):
            read(digest)
    blobs.remove(digest)
