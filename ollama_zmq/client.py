"""A client of the HTTP API for programs and for our own commands. Values are JSON as Ollama names it.

    with Client() as client:
        for chunk in client.generate("smollm2", "Why is the sky blue?"):
            print(chunk["response"], end="", flush=True)

Streams are generators; closing one cancels its request. Errors are the project's own: a missing model is
ModelNotFound, a wrong request RequestError, a busy server CapacityError, no server at all Unreachable, an answer of
another shape than Ollama's an OllamaZmqError. Half characters in what is sent (bytes of a shell that are not UTF-8)
go out as U+FFFD. A proxy of the environment (HTTP_PROXY, ALL_PROXY) is used unless the address that is connected to
is this machine's own. httpx is imported with the first client (about 0.15 s).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from ollama_zmq.errors import CapacityError, ModelNotFound, OllamaZmqError, RequestError, Unreachable
from ollama_zmq.host import Address, parse_host
from ollama_zmq.printable import whole_characters
from ollama_zmq.version import VERSION

if TYPE_CHECKING:
    import httpx

Json = dict[str, Any]

NO_SERVER = "could not connect to ollama server, run 'ollama serve' to start it"
UPLOAD_CHUNK_BYTES = 1 << 20
_PROXIES = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"))
_CLASSES: dict[int, type[OllamaZmqError]] = {404: ModelNotFound, 503: CapacityError}


class Client:
    """Talks to one server. A context manager; iterators it returns must be read or closed before it is.

    Args:
        url: of the server; None means ``OLLAMA_HOST``.
        transport: what carries the requests; for tests.

    Raises:
        RequestError: ``OLLAMA_HOST``, *url* or a proxy of the environment is no address.
    """

    def __init__(self, url: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        host = server_address() if url is None else parse_host(url, source="url")
        self.url = host.url
        self._http = _http_client(host, transport, "OLLAMA_HOST" if url is None else "url")

    def version(self) -> str:
        """The server's version."""
        return str(_field(self._get("/api/version"), "version", str))

    def tags(self) -> list[Json]:
        """The models on disk, the newest first."""
        return _items(self._get("/api/tags"), "models", {"name": str, "digest": str, "size": int, "modified_at": str})

    def ps(self) -> list[Json]:
        """The models in memory."""
        kinds = {"name": str, "digest": str, "size": int, "size_vram": int, "context_length": int, "expires_at": str}
        return _items(self._get("/api/ps"), "models", kinds)

    def cluster(self) -> Json:
        """Workers, stages and latencies."""
        state = self._get("/api/cluster")
        _items(state, "workers")
        _items(state, "models")
        return state

    def plan(self, model: str, options: Json) -> Json:
        """What loading *model* would do, for every sensible choice of workers. Raises ModelNotFound."""
        return self._post("/api/cluster/plan", {"model": model, "options": options})

    def show(self, model: str, **fields: Any) -> Json:
        """Everything about *model*. Raises ModelNotFound."""
        info = self._post("/api/show", {"model": model, **fields})
        for name in ("details", "model_info"):
            _field(info, name, dict)
        return info

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

    def embed(self, model: str, text: str, **fields: Any) -> list[list[float]]:
        """The vector of *text*, in a list. Raises RequestError."""
        answer = self._post("/api/embed", {"model": model, "input": text, **fields})
        return list(_field(answer, "embeddings", list))

    def pull(self, model: str, **fields: Any) -> Generator[Json, None, None]:
        """Get *model* from a registry; yields statuses."""
        return self._stream("/api/pull", {"model": model, **fields})

    def push(self, model: str, **fields: Any) -> Generator[Json, None, None]:
        """Send *model* to a registry; yields statuses."""
        return self._stream("/api/push", {"model": model, **fields})

    def me(self) -> Json:
        """The account at ollama.com. Raises RequestError when there is none."""
        return self._post("/api/me", {})

    def sign_out(self) -> None:
        """Forget the account at ollama.com. Raises RequestError when there is none."""
        self._send("POST", "/api/signout")

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
        """Send the file at *path* as the blob *digest*; *on_progress* gets the bytes of each step."""

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
            return _check(self._http.request(method, path, **_content(body)))

    def _stream(self, path: str, body: Json) -> Generator[Json, None, None]:
        with _explained(), self._http.stream("POST", path, **_content(body)) as response:
            if response.is_error:
                response.read()
            for line in _check(response).iter_lines():
                if line:
                    yield _chunk(line)


def server_address() -> Address:
    """Where ``OLLAMA_HOST`` says that the server is. Raises RequestError when it is no address."""
    return parse_host(os.environ.get("OLLAMA_HOST", ""))


def _http_client(host: Address, transport: httpx.BaseTransport | None, source: str) -> httpx.Client:
    import httpx

    uses_proxy = not host.is_own_machine
    try:
        httpx.URL(host.url)
    except (httpx.InvalidURL, ValueError) as error:
        raise RequestError(f"{source}: {host.url!r} is no URL: {error}") from None
    try:
        return httpx.Client(
            base_url=host.url,
            headers={"User-Agent": f"ollama-zmq/{VERSION}"},
            timeout=httpx.Timeout(None, connect=10.0),
            transport=transport,
            trust_env=uses_proxy,
            verify=host.scheme == "https",
        )
    except ImportError:
        reason = "SOCKS proxies need the package socksio: pip install socksio, or unset the variable"
    except (httpx.InvalidURL, ValueError) as error:
        reason = str(error)
    proxies = {name: value for name, value in os.environ.items() if name.upper() in _PROXIES and value}
    raise RequestError(f"proxy of {', '.join(f'{k}={v}' for k, v in sorted(proxies.items()))}: {reason}") from None


def _content(body: Json | None) -> dict[str, Any]:
    """*body* as arguments of a request: JSON in UTF-8."""
    if body is None:
        return {}
    text = whole_characters(json.dumps(body, ensure_ascii=False, separators=(",", ":")))
    return {"content": text.encode(), "headers": {"Content-Type": "application/json"}}


def _field(answer: Json, name: str, kind: type) -> Any:
    """``answer[name]``, if it is there and of *kind*."""
    value = answer.get(name)
    if not isinstance(value, kind):
        raise OllamaZmqError(f"the server's answer has no {name!r} ({kind.__name__}); is OLLAMA_HOST an ollama server?")
    return value


def _items(answer: Json, name: str, kinds: Mapping[str, type] = MappingProxyType({})) -> list[Json]:
    """The objects of the list ``answer[name]``, each with fields of *kinds*. Go writes null for an empty list."""
    found: list[Json] = [] if name in answer and answer[name] is None else _field(answer, name, list)
    for item in found:
        if not isinstance(item, dict):
            raise OllamaZmqError(f"the server's answer has {name!r} that are no objects")
        for field, kind in kinds.items():
            _field(item, field, kind)
    return list(found)


def _chunk(line: str) -> Json:
    """One line of a stream. Raises the error that it carries."""
    chunk = _object(line)
    if "error" in chunk:
        raise OllamaZmqError(str(chunk["error"]))
    return chunk


def _object(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
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
    except (ValueError, KeyError, TypeError, RecursionError):
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
    except (UnicodeError, httpx.InvalidURL) as error:  # a name with a label that is too long, of a proxy
        raise Unreachable(f"{NO_SERVER}; or correct OLLAMA_HOST or the proxy: {error}") from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"the connection to the ollama server broke: {reason}") from None
