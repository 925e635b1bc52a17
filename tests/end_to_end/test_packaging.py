"""The source archive builds by itself, and what it builds is complete."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("ollama_zmq", "kernels")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
KERNEL_SOURCES = {".pyi", ".pyx", ".pxd", ".c", ".h", ".py", ".cu"}


def _sources(folder: str, suffixes: set[str]) -> set[str]:
    """The files below *folder* of the checkout, relative to its root; what a build left there does not count."""
    found = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}
    return {str(path) for path in found if "__pycache__" not in path.parts}


def _build(what: str, source: Path, out: Path) -> Path:
    """Build an sdist or a wheel of *source* with what is installed here."""
    code = f"import sys, setuptools.build_meta as build; build.build_{what}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, check=True, capture_output=True, timeout=600)
    return next(path for path in out.iterdir() if path.name.endswith((".tar.gz", ".whl")))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, made of a copy of the checkout and unpacked elsewhere."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=ignored, symlinks=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "copy" / name)
    (folder / "sdist").mkdir()
    with tarfile.open(_build("sdist", folder / "copy", folder / "sdist")) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12's Python 3.11.2 has none
        archive.extractall(folder, **safely)
    return next(folder.glob("ollama_zmq-*"))


def test_the_source_archive_has_every_source(unpacked: Path) -> None:
    wanted = _sources("kernels", KERNEL_SOURCES) | _sources("ollama_zmq", {".py"}) | set(FILES)
    wanted.add("ollama_zmq/py.typed")
    assert sorted(name for name in wanted if not (unpacked / name).is_file()) == []


@pytest.mark.full
def test_the_wheel_of_the_source_archive_has_every_module(unpacked: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(_build("wheel", unpacked, tmp_path)).namelist()
    compiled = {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}
    assert compiled == {Path(name).stem for name in _sources("kernels", {".pyx"})}
    kernels = {name.replace("kernels/", "ollama_zmq/kernels/", 1) for name in _sources("kernels", {".py", ".pyi"})}
    assert (kernels | _sources("ollama_zmq", {".py"}) | {"ollama_zmq/py.typed"}) - set(names) == set()
    assert len(names) == len(set(names))
