"""``ollama create``: a model from a Modelfile. Its files are hashed here, and uploaded unless the server has them."""

from __future__ import annotations

import glob
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ollama_zmq import log
from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import is_terminal, say
from ollama_zmq.client import Client
from ollama_zmq.errors import RequestError
from ollama_zmq.formats.modelfile import Modelfile, decode_modelfile, parse_modelfile
from ollama_zmq.printable import printable_line

COPYING = "copying file"
HASH_CHUNK_BYTES = 1 << 20
DRAFTS_REFUSED = "draft models are not supported yet"
CHECKPOINT = (  # what belongs to a model as its makers publish it
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*_Pooling/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
)
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
OnProgress = Callable[[str, int, int], None]


@click.command(cls=Command, short_help="Create a model from a Modelfile")
@click.argument("model")
@click.option(
    "-f", "--file", "path", type=click.Path(path_type=Path), help='Name of the Modelfile (default "Modelfile")'
)
@click.option("-q", "--quantize", default="", help="Quantize model to this level (e.g. q4_K_M)")
@click.option("--draft-quantize", default="", hidden=True)
@click.option("--experimental", is_flag=True, hidden=True)
def create(model: str, path: Path | None, quantize: str, draft_quantize: str, experimental: bool) -> None:
    """Make MODEL as a Modelfile says."""
    log.configure()
    if draft_quantize:
        raise RequestError(f"--draft-quantize {draft_quantize}: {DRAFTS_REFUSED}; leave it out")
    if experimental:
        raise RequestError("--experimental: models are made from GGUF files only; leave it out")
    path = path or Path("Modelfile")
    try:
        modelfile = parse_modelfile(decode_modelfile(path.read_bytes()))
    except FileNotFoundError:
        raise RequestError(f"specified Modelfile wasn't found: {path}; name one with -f") from None
    with Client() as client:
        with _progress() as on_progress:
            fields = request_of(client, modelfile, path.parent, on_progress)
        for status in client.create(model, **fields, **({"quantize": quantize} if quantize else {})):
            say(printable_line(str(status.get("status", ""))), err=True)


def request_of(
    client: Client, modelfile: Modelfile, folder: Path, on_progress: OnProgress = lambda *_: None
) -> dict[str, Any]:
    """The fields of the request that makes what *modelfile* says; its files are on the server when this returns.

    Raises:
        RequestError: a file is missing, a value is wrong, or a draft model is named.
    """
    if modelfile.drafts:
        raise RequestError(f"DRAFT {modelfile.drafts[0]}: {DRAFTS_REFUSED}; leave the line out")
    sources = {source: local_files(source, folder) for source in modelfile.sources}
    adapters = [_existing(adapter, folder) for adapter in modelfile.adapters]
    files = {name: path for found in sources.values() if found for name, path in found.items()}
    fields: dict[str, Any] = {
        "from": next((source for source, found in sources.items() if found is None), ""),
        "files": _uploaded(client, files, on_progress),
        "adapters": _uploaded(client, {path.name: path for path in adapters}, on_progress),
        "template": modelfile.template,
        "system": modelfile.system,
        "license": list(modelfile.licenses),
        "parameters": modelfile.typed_parameters(),
        "messages": [{"role": message.role, "content": message.content} for message in modelfile.messages],
        "renderer": modelfile.renderer,
        "parser": modelfile.parser,
        "requires": modelfile.requires,
    }
    return {name: value for name, value in fields.items() if value}


def local_files(source: str, folder: Path) -> dict[str, Path] | None:
    """The files that ``FROM source`` means by the names they are sent under, or None if it is the name of a model.

    A part of a model, ``NAME-00001-of-00003.gguf``, means all parts that lie beside it.

    A folder means the safetensors in it and what belongs to them, or else the GGUF files in it.

    Raises:
        RequestError: it looks like a path, and there is no such file, or nothing to make a model of in the folder.
    """
    path = folder / Path(source).expanduser()
    if part := PART.fullmatch(path.name):
        return {one.name: one for one in sorted(path.parent.glob(f"{glob.escape(part[1])}-*-of-{part[2]}.gguf"))}
    if path.is_file():
        return {path.name: path}
    if path.is_dir():
        return _files_of_folder(source, path)
    if source.startswith(("/", "./", "../", "~")) or source.endswith(".gguf"):
        raise RequestError(f"FROM {source}: no such file: {path}")
    return None


def _files_of_folder(source: str, folder: Path) -> dict[str, Path]:
    patterns = CHECKPOINT if any(folder.glob("*.safetensors")) else ("*.gguf",)
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    if not found:
        raise RequestError(f"FROM {source}: neither *.safetensors nor *.gguf in folder {folder}")
    return {str(path.relative_to(folder)): path for path in sorted(found)}


def _existing(name: str, folder: Path) -> Path:
    path = folder / Path(name).expanduser()
    if not path.is_file():
        raise RequestError(f"ADAPTER {name}: no such file: {path}")
    return path


def _uploaded(client: Client, files: Mapping[str, Path], on_progress: OnProgress) -> dict[str, str]:
    """Names and digests of *files*, names and paths, which the server has when this returns."""
    found: dict[str, str] = {}
    for name, path in files.items():
        digest, total = _digest(path, on_progress), path.stat().st_size
        if not client.has_blob(digest):
            client.upload(path, digest, _counter(f"{COPYING} {digest[:19]}", total, on_progress))
        found[name] = digest
    return found


def _counter(what: str, total: int, on_progress: OnProgress) -> Callable[[int], None]:
    done = 0

    def add(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        on_progress(what, done, total)

    return add


def _digest(path: Path, on_progress: OnProgress) -> str:
    count = _counter(f"reading {path.name}", path.stat().st_size, on_progress)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
            count(len(chunk))
    return f"sha256:{digest.hexdigest()}"


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A line with a bar on stderr for each file that is sent, which stays; nothing where nobody watches."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}", markup=False), TaskProgressColumn(), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_terminal(sys.stderr)) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(printable_line(what), total=total)
            progress.update(tasks[what], completed=done, visible=done < total or what.startswith(COPYING))

        yield show
