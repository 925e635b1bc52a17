"""``ollama create``: a model from a Modelfile. Its files are hashed here, and uploaded unless the server has them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
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
    sources = {source: local_file(source, folder) for source in modelfile.sources}
    adapters = [_existing(adapter, folder) for adapter in modelfile.adapters]
    fields: dict[str, Any] = {
        "from": next((source for source, file in sources.items() if file is None), ""),
        "files": _uploaded(client, [file for file in sources.values() if file is not None], on_progress),
        "adapters": _uploaded(client, adapters, on_progress),
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


def local_file(source: str, folder: Path) -> Path | None:
    """The file that ``FROM source`` means, or None if it is the name of a model.

    Raises:
        RequestError: it looks like a path, and there is no such file.
    """
    path = folder / Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise RequestError(f"FROM {source}: is a folder; only GGUF files are supported, convert the model first")
    if source.startswith(("/", "./", "../", "~")) or source.endswith(".gguf"):
        raise RequestError(f"FROM {source}: no such file: {path}")
    return None


def _existing(name: str, folder: Path) -> Path:
    path = folder / Path(name).expanduser()
    if not path.is_file():
        raise RequestError(f"ADAPTER {name}: no such file: {path}")
    return path


def _uploaded(client: Client, paths: Sequence[Path], on_progress: OnProgress) -> dict[str, str]:
    """File names and digests of *paths*, which the server has when this returns."""
    found: dict[str, str] = {}
    for path in paths:
        digest, total = _digest(path, on_progress), path.stat().st_size
        if not client.has_blob(digest):
            client.upload(path, digest, _counter(f"{COPYING} {digest[:19]}", total, on_progress))
        found[path.name] = digest
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
