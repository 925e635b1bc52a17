"""A client of the HTTP API for programs and for our own commands. Values are JSON as Ollama names it.

    with Client() as client:
        for chunk in client.generate("smollm2", "Why is the sky blue?"):
            print(chunk["response"], end="", flush=True)

Streams are generators; closing one cancels its request. Errors are the project's own: a missing model is
ModelNotFound, a wrong request RequestError, a busy server CapacityError, no server at all Unreachable.
httpx is imported with the first client (about 0.15 s).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ollama_zmq.config import Config
from ollama_zmq.errors import CapacityError, ModelNotFound, OllamaZmqError, RequestError, Unreachable
from ollama_zmq.version import VERSION

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]

NO_SERVER = "could not connect to ollama server, run 'ollama serve' to start it"
UPLOAD_CHUNK_BYTES = 1 << 20
_CLASSES: dict[int, type[OllamaZmqError]] = {404: ModelNotFound, 503: CapacityError}


class Client:
    """Talks to one server. A context manager; iterators it returns must be read or closed before it is.

    Args:
        url: of the server; None means ``OLLAMA_HOST``.
        transport: what carries the requests; for tests.
    """

    def __init__(self, url: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        host = Config.from_environment(os.environ if url is None else {"OLLAMA_HOST": url}).host
        self.url = host.url
        self._http = httpx.Client(
            base_url=self.url,
            headers={"User-Agent": f"ollama-zmq/{VERSION}"},
            timeout=httpx.Timeout(None, connect=10.0),
            transport=transport,
            trust_env=not host.is_loopback,  # a proxy never stands between us and our own machine
            verify=host.scheme == "https",
        )

    def version(self) -> str:
        """The server's version."""
        return str(self._get("/api/version")["version"])

    def tags(self) -> list[Json]:
        """The models on disk, the newest first."""
        return list(self._get("/api/tags")["models"])

    def ps(self) -> list[Json]:
        """The models in memory."""
        return list(self._get("/api/ps")["models"])

    def cluster(self) -> Json:
        """Workers, stages and latencies."""
        return self._get("/api/cluster")

    def plan(self, model: str, options: Json) -> Json:
        """What loading *model* would do, for every sensible choice of workers. Raises ModelNotFound."""
        return self._post("/api/cluster/plan", {"model": model, "options": options})

    def show(self, model: str, **fields: Any) -> Json:
        """Everything about *model*. Raises ModelNotFound."""
        return self._post("/api/show", {"model": model, **fields})

    def copy(self, source: str, destination: str) -> None:
        """Give *source* a second name. Raises ModelNotFound, RequestError."""
        self._send("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Remove *model*. Raises ModelNotFound."""
        self._send("DELETE", "/api/delete", {"model": model})

    def load(self, model: str, **fields: Any) -> None:
        """Load *model* and return when it is there. Raises whatever keeps it from loading."""
        self._post("/api/generate", {"model": model, "prompt": "", "stream": False, **fields})

    def unload(self, model: str) -> None:
        """Unload *model*, after its running requests."""
        self.load(model, keep_alive=0)

    def generate(self, model: str, prompt: str, **fields: Any) -> Generator[Json, None, None]:
        """Chunks that continue *prompt*; closing the iterator cancels. The last one has ``done`` and the counts."""
        return self._stream("/api/generate", {"model": model, "prompt": prompt, **fields})

    def chat(self, model: str, messages: Sequence[Json], **fields: Any) -> Generator[Json, None, None]:
        """Chunks that answer *messages*; closing the iterator cancels."""
        return self._stream("/api/chat", {"model": model, "messages": list(messages), **fields})

    def create(self, model: str, **fields: Any) -> Generator[Json, None, None]:
        """Make *model*; yields its statuses."""
        return self._stream("/api/create", {"model": model, **fields})

    def has_blob(self, digest: str) -> bool:
        """Whether the server's store holds the blob ``sha256:<hex>``."""
        try:
            self._send("HEAD", f"/api/blobs/{digest}")
        except ModelNotFound:
            return False
        return True

    def upload(self, path: Path, digest: str, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Send the file at *path* as the blob *digest*; *on_progress* is told the bytes of each step."""

        def chunks() -> Iterator[bytes]:
            with path.open("rb") as file:
                while chunk := file.read(UPLOAD_CHUNK_BYTES):
                    yield chunk
                    on_progress(len(chunk))

        with _explained():
            headers = {"Content-Length": str(path.stat().st_size)}
            _check(self._http.post(f"/api/blobs/{digest}", content=chunks(), headers=headers))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _get(self, path: str) -> Json:
        return _object(self._send("GET", path).content)

    def _post(self, path: str, body: Json) -> Json:
        return _object(self._send("POST", path, body).content)

    def _send(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        with _explained():
            return _check(self._http.request(method, path, json=body))

    def _stream(self, path: str, body: Json) -> Generator[Json, None, None]:
        with _explained(), self._http.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
            for line in _check(response).iter_lines():
                if line:
                    yield _chunk(line)


def _chunk(line: str) -> Json:
    """One line of a stream. Raises the error that it carries."""
    chunk = _object(line)
    if "error" in chunk:
        raise OllamaZmqError(str(chunk["error"]))
    return chunk


def _object(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OllamaZmqError(f"the server answered no JSON object: {text[:80]!r}; is OLLAMA_HOST an ollama server?")
    return value


def _check(response: httpx.Response) -> httpx.Response:
    """*response*, if it tells no error."""
    if not response.is_error:
        return response
    status = response.status_code
    try:
        message = str(json.loads(response.content)["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {status} {response.reason_phrase}"
    raise _CLASSES.get(status, RequestError if 400 <= status < 500 else OllamaZmqError)(message, status=status)


@contextmanager
def _explained() -> Iterator[None]:
    """Errors of the network as ours."""
    import httpx

    try:
        yield
    except httpx.ConnectError:
        raise Unreachable(NO_SERVER) from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"the connection to the ollama server broke: {reason}") from None
