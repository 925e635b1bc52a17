"""What the environment says, read once: the variables of Ollama that mean something here, and ``OLLAMA_RPC_SERVERS``.

A value is trimmed of spaces and quotes. A number that is none is a warning and the default; a switch that is neither
true nor false is on. Reading never fails: what was replaced stands in ``Config.warnings``, for the log, and what
nothing can replace in ``Config.errors``, for the commands that need it. A variable that is none of Ollama's but looks
like one is a warning too, since a typing error would otherwise only show in what does not happen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from ollama_zmq.durations import keep_alive_s
from ollama_zmq.errors import RequestError
from ollama_zmq.host import DEFAULT_ADDRESS, Address, parse_host
from ollama_zmq.variables import is_on, trimmed, unsigned

_ORIGIN = re.compile(r"[\w.+*-]+://[^/?#]+")
_MIN_LIKENESS = 0.85  # of a variable that may be meant: one letter in seven
_LOCAL_ORIGINS = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_ORIGINS = ("app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")

# what `ollama serve --help` lists, and other commands' help in part
VARIABLES = {
    "OLLAMA_CONTEXT_LENGTH": "Context length to use unless otherwise specified (default: 4096)",
    "OLLAMA_CPU_ISA": "Instruction set of the kernels (default: the fastest that this CPU has)",
    "OLLAMA_CPU_PIN": "Pin each kernel thread to a core of its own; 1 turns it on (default 0)",
    "OLLAMA_DEBUG": "Show additional debug information (e.g. OLLAMA_DEBUG=1)",
    "OLLAMA_EDITOR": "Path to editor for interactive prompt editing (Ctrl+G; default: VISUAL, EDITOR)",
    "OLLAMA_HOST": "IP Address for the ollama server (default 127.0.0.1:11434)",
    "OLLAMA_KEEP_ALIVE": 'The duration that models stay loaded in memory (default "5m")',
    "OLLAMA_KV_CACHE_TYPE": "Quantization type for the K/V cache: f16 or q8_0 (default: f16)",
    "OLLAMA_LOAD_TIMEOUT": 'How long a load may make no progress; 0 or less for no limit (default "5m")',
    "OLLAMA_MAX_LOADED_MODELS": "Maximum number of loaded models (default 0: as many as fit)",
    "OLLAMA_MAX_QUEUE": "Maximum number of queued requests (default 512)",
    "OLLAMA_MODELS": "The path to the models directory",
    "OLLAMA_NOHISTORY": "Do not preserve readline history",
    "OLLAMA_NOPRUNE": "Do not prune model blobs on startup",
    "OLLAMA_NUM_PARALLEL": "Maximum number of parallel requests (default: as many as the KV cache holds)",
    "OLLAMA_ORIGINS": "A comma separated list of allowed origins",
    "OLLAMA_PARSE_SPECIAL": "Take words of a prompt that name a control token for it; 0 keeps them words (default 1)",
    "OLLAMA_RPC_ALLOW": "Workers that requests may name: addresses, names, networks or * (default OLLAMA_RPC_SERVERS)",
    "OLLAMA_RPC_MISSING": "When a listed worker is missing: use-rest, wait or refuse (default use-rest)",
    "OLLAMA_RPC_POLICY": "throughput uses every listed worker, fastest may leave some out (default throughput)",
    "OLLAMA_RPC_SERVERS": "A comma separated list of rpc-server workers (host:port)",
    "OLLAMA_SPECULATE": "Guess tokens that were said before where that is faster; 0 turns it off (default 1)",
}

# what Ollama reads and nothing here does: said in the log, lest it be counted on
_WITHOUT_EFFECT = re.compile(
    "OLLAMA_(AUTH|DEBUG_LOG_REQUESTS|EXPERIMENT|FLASH_ATTENTION|GO_TEMPLATE|GPU_OVERHEAD|IGPU_ENABLE|INTEL_GPU|"
    "LLM_LIBRARY|MAX_TRANSFER_STREAMS|MULTIUSER_CACHE|NEW_ENGINE|REMOTES|RUNNERS_DIR|SCHED_SPREAD|TMPDIR|"
    "VULKAN)"
)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process. Made by :meth:`from_environment`.

    Attributes:
        host: ``OLLAMA_HOST``.
        models: folder of manifests and blobs.
        keep_alive_s: how long an unused model stays loaded; ``inf`` for ever.
        load_timeout_s: how long a load may make no progress; ``inf`` for ever.
        kv_cache_type: "f16" or "q8_0", what keys and values are kept as.
        context_length: ``num_ctx`` where neither request nor Modelfile has one; 0 for the default.
        num_parallel: sequences per model at the same time; 0 for as many as the KV cache holds.
        max_queue: requests that may wait.
        max_loaded_models: models in memory at the same time; 0 for as many as fit.
        origins: patterns of web origins that may call; ``*`` stands for any text.
        rpc_servers: workers, ``host:port`` joined by commas.
        rpc_policy: "throughput" or "fastest".
        rpc_missing: "use-rest", "wait" or "refuse".
        rpc_allow: workers that a request may name, joined by commas; "" for those of the list, else loopback.
        parse_special: ``parse_special`` where neither request nor Modelfile has it.
        speculate: guess tokens that were said before, and verify several in one pass.
        editor: command that edits a message of the conversation; "" for the system's own.
        no_history: lines of the conversation are not kept.
        no_prune: blobs that nothing names stay at the start.
        warnings: one line for each value that was replaced, or has no effect.
        errors: variable -> one line about a value that nothing can replace; see :meth:`require`.
    """

    host: Address = DEFAULT_ADDRESS
    models: Path = field(default_factory=lambda: _models(""))
    keep_alive_s: float = 300.0
    load_timeout_s: float = 300.0
    kv_cache_type: str = "f16"
    context_length: int = 0
    num_parallel: int = 0
    max_queue: int = 512
    max_loaded_models: int = 0
    origins: tuple[str, ...] = ()
    rpc_servers: str = ""
    rpc_policy: str = "throughput"
    rpc_missing: str = "use-rest"
    rpc_allow: str = ""
    parse_special: bool = True
    speculate: bool = True
    editor: str = ""
    no_history: bool = False
    no_prune: bool = False
    warnings: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)

    def require(self, *names: str) -> None:
        """Raise RequestError if one of these variables has a value that nothing can be done with."""
        for name in names:
            if name in self.errors:
                raise RequestError(self.errors[name], variable=name)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Config:
        """Read *environ*, usually ``os.environ``."""
        values = _Values(environ)
        host = values.host()
        values.warnings += _unknown(environ)
        return cls(
            host=host,
            models=values.models(),
            keep_alive_s=values.duration("OLLAMA_KEEP_ALIVE", 300.0),
            load_timeout_s=values.duration("OLLAMA_LOAD_TIMEOUT", 300.0) or math.inf,
            kv_cache_type=values.choice("OLLAMA_KV_CACHE_TYPE", ("f16", "q8_0")),
            context_length=values.count("OLLAMA_CONTEXT_LENGTH", 0),
            num_parallel=values.count("OLLAMA_NUM_PARALLEL", 0),
            max_queue=values.count("OLLAMA_MAX_QUEUE", 512),
            max_loaded_models=values.count("OLLAMA_MAX_LOADED_MODELS", 0),
            origins=values.origins(),
            rpc_servers=values.text("OLLAMA_RPC_SERVERS"),
            rpc_policy=values.choice("OLLAMA_RPC_POLICY", ("throughput", "fastest")),
            rpc_missing=values.needed("OLLAMA_RPC_MISSING", ("use-rest", "wait", "refuse")),
            rpc_allow=values.text("OLLAMA_RPC_ALLOW"),
            parse_special=values.switch("OLLAMA_PARSE_SPECIAL", default=True),
            speculate=values.switch("OLLAMA_SPECULATE", default=True),
            editor=environ.get("OLLAMA_EDITOR", "").strip(),  # quotes are the command's own
            no_history=values.switch("OLLAMA_NOHISTORY"),
            no_prune=values.switch("OLLAMA_NOPRUNE"),
            warnings=tuple(values.warnings),
            errors=values.errors,
        )


def _models(text: str) -> Path:
    """The folder that ``OLLAMA_MODELS`` names. Raises RequestError when a ``~`` in it, or the default, has no home."""
    try:
        return Path(text).expanduser() if text else Path.home() / ".ollama" / "models"
    except RuntimeError:
        given = f"OLLAMA_MODELS={text!r}: that home" if text else "this user's home"
        raise RequestError(f"{given} is not known: set OLLAMA_MODELS to a folder, or HOME") from None


def _unknown(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that looks like one of ours and is none, or is Ollama's and does nothing here."""
    for name in sorted(environ):
        if not name.startswith("OLLAMA_") or name in VARIABLES:
            continue
        if _WITHOUT_EFFECT.fullmatch(name):
            yield f"{name} has no effect in ollama-zmq"
        elif near := get_close_matches(name, VARIABLES, 1, _MIN_LIKENESS):
            yield f"{name!r} is not a variable of ollama: did you mean {near[0]}?"


T = TypeVar("T")


class _Values:
    """The variables as typed values, with a note of what was wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.warnings: list[str] = []
        self.errors: dict[str, str] = {}

    def text(self, name: str) -> str:
        return trimmed(self.environ.get(name, ""))

    def switch(self, name: str, *, default: bool = False) -> bool:
        return is_on(self.environ.get(name, ""), default=default)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        text = self.text(name).lower()
        if text and text not in choices:
            self.warnings.append(f"{name}={text!r}: not one of {', '.join(choices)}, using {choices[0]}")
        return text if text in choices else choices[0]

    def needed(self, name: str, choices: tuple[str, ...]) -> str:
        """A choice that no other may take the place of: what it is for would then not be done."""
        text = self.text(name).lower()
        if text and text not in choices:
            self.errors[name] = f"{name}={text!r}: not one of {', '.join(choices)}"
        return text if text in choices else choices[0]

    def count(self, name: str, default: int) -> int:
        return self._parsed(name, default, unsigned)

    def duration(self, name: str, default: float) -> float:
        return self._parsed(name, default, _seconds)

    def _parsed(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        text = self.text(name)
        if not text:
            return default
        try:
            return parse(text)
        except ValueError:
            self.warnings.append(f"{name}={text!r}: not understood, using {default}")
            return default

    def host(self) -> Address:
        try:
            return parse_host(self.text("OLLAMA_HOST"), self.warnings)
        except RequestError as error:
            self.errors["OLLAMA_HOST"] = error.message
            return DEFAULT_ADDRESS

    def models(self) -> Path:
        try:
            return _models(self.text("OLLAMA_MODELS"))
        except RequestError as error:
            self.errors["OLLAMA_MODELS"] = error.message
            return Path(".ollama", "models")

    def origins(self) -> tuple[str, ...]:
        """The patterns of ``OLLAMA_ORIGINS`` and our own. A browser sends ``scheme://host[:port]``, no path."""
        own = [origin.strip() for origin in self.text("OLLAMA_ORIGINS").split(",") if origin.strip()]
        for origin in own:
            if "*" not in origin and not _ORIGIN.fullmatch(origin):
                self.warnings.append(
                    f"OLLAMA_ORIGINS: {origin!r} matches no origin: expected scheme://host[:port], as in http://a.com"
                )
        local = [
            f"{scheme}://{host}{port}" for host in _LOCAL_ORIGINS for port in ("", ":*") for scheme in ("http", "https")
        ]
        return (*own, *local, *_APP_ORIGINS)


def _seconds(text: str) -> float:
    """A Go duration, or a bare number of seconds; negative is without end."""
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        return keep_alive_s(int(text))
    return keep_alive_s(text)
