"""Ollama's options: names, types, defaults, and how a Modelfile's and a request's are laid over them.

An option we do not know is logged and ignored in a request, because clients send what other versions know;
in a Modelfile it is an error, because a person wrote it. Types are as lenient as Ollama's: an integer
option takes a float and cuts it, a float option takes an integer, null means absent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from ollama_zmq.errors import RequestError

log = structlog.get_logger()

MIN_NUM_CTX = 4
DEPRECATED = frozenset(
    {
        "f16_kv",
        "logits_all",
        "low_vram",
        "mirostat",
        "mirostat_eta",
        "mirostat_tau",
        "penalize_newline",
        "use_mlock",
        "vocab_only",
    }
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded and how its tokens are chosen.

    Attributes:
        num_ctx: cache slots of one sequence; the server replaces this default by what memory allows.
        num_gpu: layers on GPUs, -1 for as many as fit.
        num_keep: tokens at the head of the prompt that are kept when the context is shifted.
        seed: -1 draws one.
        num_predict: tokens to generate at most, 0 for one, -1 for no limit.
        repeat_last_n: how far penalties look back, 0 for not at all, -1 for the whole context.
        stop: texts that end the generation.
        parse_special: whether words of a prompt or message that name a control token become it, as in Ollama; false
            keeps them words, so that a user's text cannot end its turn and begin a system's.
        rpc_servers: workers to spread the model over, ``host:port`` joined by commas; None for the server's own list.
    """

    num_ctx: int = 4096
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int = 0
    draft_num_predict: int = 4
    rpc_servers: str | None = None

    num_keep: int = 4
    seed: int = -1
    num_predict: int = -1
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    temperature: float = 0.8
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    parse_special: bool = True


MAX_STOPS = 256
MAX_STOP_LENGTH = 4096  # characters
MAX_LOGGED = 100  # characters of what a request calls an option, and of its value
MAX_IGNORED_LOGGED = 8  # options of one request
_KINDS = {
    name: next(kind for kind in ("bool", "int", "float", "tuple", "str") if kind in annotation)
    for name, annotation in Options.__annotations__.items()
}


def merge_options(defaults: Options, model: Mapping[str, object], request: Mapping[str, object] | None) -> Options:
    """*defaults*, overlaid with a model's parameters, overlaid with a request's options.

    Raises:
        RequestError: a value has the wrong type, or there are too many stop texts, or too long ones.
    """
    changes: dict[str, Any] = {}
    ignored: list[tuple[str, object]] = []
    for name, value in [*model.items(), *(request or {}).items()]:
        if name not in _KINDS:
            ignored.append((name, value))
        elif value is not None:
            changes[name] = _typed(name, value)
    _log_ignored(ignored)
    merged = msgspec.structs.replace(defaults, **changes)
    return msgspec.structs.replace(merged, num_ctx=max(merged.num_ctx, MIN_NUM_CTX))


def _log_ignored(ignored: Sequence[tuple[str, object]]) -> None:
    """Log a few of the options that were *ignored*, cut short, and how many there are besides."""
    for name, value in ignored[:MAX_IGNORED_LOGGED]:
        log.warning("option.ignored", name=name[:MAX_LOGGED], value=_logged(value))
    if len(ignored) > MAX_IGNORED_LOGGED:
        log.warning("options.ignored", more=len(ignored) - MAX_IGNORED_LOGGED)


def _logged(value: object) -> object:
    """What a log shows of *value*, which may be as large as a request."""
    match value:
        case str():
            return value[:MAX_LOGGED]
        case list() | tuple() | dict():
            return f"{type(value).__name__} of {len(value)}"
        case int() if value.bit_length() > 64:
            return f"int of {value.bit_length()} bits"
    return value


def _typed(name: str, value: object) -> object:
    """*value* of a request as option *name* wants it."""
    match _KINDS[name], value:
        case "bool", bool():
            return value
        case "int", int() | float() if not isinstance(value, bool) and abs(value) < 2**63:
            return int(value)
        case "float", int() | float() if not isinstance(value, bool) and abs(value) < 3.4e38:
            return float(value)
        case "str", str():
            return value
        case "tuple", list() | tuple():
            if all(isinstance(item, str) for item in value):
                return _stops(tuple(value))
            raise RequestError(f'option "{name}" must be of an array of strings', option=name)
    raise RequestError(f'option "{name}" must be of type {_OLLAMA_TYPES[_KINDS[name]]}', option=name)


def _stops(texts: tuple[str, ...]) -> tuple[str, ...]:
    """*texts*, which are looked for after every token."""
    if len(texts) > MAX_STOPS:
        raise RequestError(f'option "stop" has {len(texts)} texts, at most {MAX_STOPS}', option="stop")
    longest = max(map(len, texts), default=0)
    if longest > MAX_STOP_LENGTH:
        raise RequestError(
            f'option "stop" has a text of {longest} characters, at most {MAX_STOP_LENGTH}', option="stop"
        )
    return texts


_OLLAMA_TYPES = {"bool": "boolean", "int": "integer", "float": "float32", "str": "string", "tuple": "array"}
_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)
_BOOLEANS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)


def typed_parameters(parameters: Iterable[tuple[str, str]]) -> dict[str, object]:
    """The ``PARAMETER`` lines of a Modelfile as typed values; a repeated ``stop`` is a list, else the last one counts.

    Raises:
        RequestError: an unknown name, text that is no value of its type, or too many stop texts, or too long ones.
    """
    typed: dict[str, object] = {}
    stops: list[str] = []
    ignored: list[tuple[str, object]] = []
    for name, text in parameters:
        if name in DEPRECATED:
            ignored.append((name, text))
        elif name == "stop":
            stops.append(text)
            typed[name] = stops
        else:
            typed[name] = parse_parameter(name, text)
    _stops(tuple(stops))
    _log_ignored(ignored)
    return typed


def parse_parameter(name: str, text: str) -> object:
    """The value of one ``PARAMETER`` line.

    Raises:
        RequestError: an unknown name, or text that is no value of its type.
    """
    kind = _KINDS.get(name)
    try:
        match kind:
            case "int":
                return _int64(text)
            case "float":
                return _float32(text)
            case "bool":
                return _BOOLEANS[text]
            case "tuple":
                return [text]
            case "str":
                return text
    except (ValueError, KeyError, OverflowError):
        raise RequestError(f"invalid {kind} value [{text}] for parameter {name!r}", parameter=name) from None
    raise RequestError(f"unknown parameter '{name}'", parameter=name)


def _int64(text: str) -> int:
    value = int(text)
    if "_" in text or not -(2**63) <= value < 2**63:
        raise ValueError(text)
    return value


def _float32(text: str) -> float:
    value = float(text)
    struct.pack("<f", value)  # OverflowError beyond the largest float32
    if "_" in text or value != value or value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def format_parameters(parameters: Mapping[str, object]) -> str:
    """The ``parameters`` text of ``/api/show``: a line ``name<padded to 30> value`` each, in order of name."""
    return "\n".join(
        f"{name:<30} {_go_literal(item)}"
        for name, value in sorted(parameters.items())
        for item in (value if isinstance(value, list | tuple) else [value])
    )


def _go_literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return f"{value:g}" if isinstance(value, float) else str(value)
