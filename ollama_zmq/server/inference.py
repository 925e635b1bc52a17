"""What ``/api/generate`` and ``/api/chat`` share: from a request's body to tokens, and from outputs to numbers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from ollama_zmq.bus.addresses import is_allowed, parse_servers
from ollama_zmq.bus.loads import LoadedModel, LoadRequest
from ollama_zmq.cluster.placement import Policy
from ollama_zmq.cluster.stages import Missing
from ollama_zmq.config import Config
from ollama_zmq.durations import keep_alive_s
from ollama_zmq.engine.requests import Finished, GenerationRequest, TextChunk, TokenLogprob
from ollama_zmq.errors import CapacityError, ContextOverflow, ModelFileError, OllamaZmqError, RequestError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.options import MIN_NUM_CTX, Options, merge_options
from ollama_zmq.server.facts import Facts, facts_of
from ollama_zmq.server.names import checked_name
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import Inference, Logprob, TopLogprob
from ollama_zmq.server.services import Services
from ollama_zmq.store.stored_model import StoredModel
from ollama_zmq.text.prompts import encode_ends
from ollama_zmq.text.tokenizer import Tokenizer

log = structlog.get_logger()

DEFAULT_NUM_CTX = 4096
MAX_NUM_BATCH = 1 << 16
MAX_NUM_THREAD = 1024  # as many cores as one machine has, and far fewer than threads it could start
THINK_LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """An inference request that has been checked and may run.

    Attributes:
        started_ns: when the request came, monotonic.
        keep_alive_s: None if the client did not say.
    """

    request: Inference
    model: StoredModel
    facts: Facts
    options: Options
    load_spec: LoadRequest
    keep_alive_s: float | None
    started_ns: int

    @property
    def unloads(self) -> bool:
        """Whether ``keep_alive`` is 0, which unloads the model if there is nothing to answer."""
        return self.keep_alive_s == 0


async def prepare(
    services: Services, request: Inference, *, go_template: str = "", needs: Sequence[str] = ()
) -> PreparedRequest:
    """*request* checked, with its model, options and load spec; nothing is loaded yet.

    Args:
        go_template: what the request brings in place of the model's own; "" for none.
        needs: the capabilities it takes, besides thinking.

    Raises:
        ModelNotFound: the store has no such model.
        RequestError: an option, a capability or a field is wrong, and which.
    """
    started_ns = time.monotonic_ns()
    _check_fields(request)
    needed = [*needs, *(["thinking"] if request.think else [])]

    def of(model: StoredModel) -> PreparedRequest:
        if model.manifest.of_type(records.ADAPTER_TYPE):
            raise RequestError(f"model {request.model!r} has an adapter, which this version does not apply: merge it")
        facts = facts_of(model, go_template)
        for capability in needed:
            facts.require(model, request.model, capability)
        model.read_texts()
        options, load_spec = load_of(services, model, facts, request.options)
        return PreparedRequest(
            request=request,
            model=model,
            facts=facts,
            options=options,
            load_spec=load_spec,
            keep_alive_s=_keep_alive(request.keep_alive),
            started_ns=started_ns,
        )

    return await asyncio.to_thread(services.store.read, checked_name(request.model), of)


@asynccontextmanager
async def resident_of(services: Services, prepared: PreparedRequest) -> AsyncIterator[Resident]:
    """Borrow the model of *prepared*, loaded if need be.

    Raises:
        ModelNotFound: it was deleted before its file was opened.
        CapacityError: it was replaced by then, or see :meth:`ModelScheduler.use`.
        OllamaZmqError: it cannot be loaded.
    """
    async with AsyncExitStack() as stack:
        using = services.scheduler.use(prepared.model, prepared.load_spec, prepared.keep_alive_s)
        try:
            resident = await stack.enter_async_context(using)
        except ModelFileError:
            name = checked_name(prepared.request.model)
            found = await asyncio.to_thread(services.store.get, name)
            if found.digest != prepared.model.digest:
                raise CapacityError(f"model {name!r} was replaced while it was loaded: try again") from None
            raise
        yield resident


def _check_fields(request: Inference) -> None:
    if not 0 <= request.top_logprobs <= 20:
        raise RequestError("top_logprobs must be between 0 and 20")
    if request.format != "":
        raise RequestError(
            "format: structured output is not supported yet; leave it out and ask for JSON in the prompt"
        )
    if isinstance(request.think, str) and request.think not in THINK_LEVELS:
        levels = ", ".join(f'"{level}"' for level in THINK_LEVELS)
        raise RequestError(f'invalid think value: "{request.think}" (must be {levels}, true or false)')


def _keep_alive(value: str | float | None) -> float | None:
    try:
        return None if value is None else keep_alive_s(value)
    except ValueError as error:
        raise RequestError(f"keep_alive: {error}") from None


def load_of(
    services: Services, model: StoredModel, facts: Facts, requested: Mapping[str, Any]
) -> tuple[Options, LoadRequest]:
    """The options of a request with the options *requested*, and how the model is to be loaded for it.

    Options and workers are the request's, else the Modelfile's, else the environment's.

    Raises:
        RequestError: an option has the wrong type, or a worker no address.
    """
    config = services.config
    defaults = Options(num_ctx=config.context_length or DEFAULT_NUM_CTX, parse_special=config.parse_special)
    options = merge_options(defaults, model.parameters, requested)
    servers, foreign = _workers(config, options.rpc_servers)
    return options, LoadRequest(
        name=model.name.short,
        path=model.gguf_path,
        blob=model.gguf_path.name,
        num_ctx=_num_ctx(options.num_ctx, facts.context_length),
        rpc_servers=servers,
        num_batch=min(max(1, options.num_batch), MAX_NUM_BATCH),
        num_parallel=config.num_parallel,
        speculate=config.speculate,
        num_thread=_num_thread(options.num_thread),
        policy=Policy(config.rpc_policy),
        missing=Missing(config.rpc_missing),
        foreign=foreign,
        kv_type=config.kv_cache_type,
    )


def _workers(config: Config, named: str | None) -> tuple[tuple[str, ...], frozenset[str]]:
    """The workers to load over, and those of them that the operator of this server did not name.

    Raises:
        RequestError: one that a request or a Modelfile names is none that it may name.
    """
    own = parse_servers(config.rpc_servers)
    servers = own if named is None else parse_servers(named)
    for address in servers:
        if not is_allowed(address, own, config.rpc_allow):
            raise RequestError(
                f"rpc server {address} is not one that requests may name here: see OLLAMA_RPC_ALLOW", address=address
            )
    return servers, frozenset(servers).difference(own)


def _num_ctx(requested: int, trained: int) -> int:
    """The context to load with: *requested*, at most what the model was trained for unless that is 0."""
    if 0 < trained < requested != DEFAULT_NUM_CTX:
        log.warning("context.reduced", num_ctx=requested, trained=trained)
    return max(MIN_NUM_CTX, min(requested, trained or requested))


def _num_thread(requested: int) -> int:
    """The threads to compute with; 0 leaves them to the device."""
    if requested > MAX_NUM_THREAD:
        raise RequestError(f"num_thread={requested}: at most {MAX_NUM_THREAD}; leave it out for one per core")
    return max(0, requested)


def tokenizer_of(prepared: PreparedRequest, tokenizer: Tokenizer | None) -> Tokenizer:
    """The loaded model's tokenizer. Raises RequestError if the file has none."""
    if tokenizer is None:
        raise RequestError(f"model {prepared.request.model!r}: the file has no vocabulary, so it cannot read a prompt")
    return tokenizer


def encoded(
    tokenizer: Tokenizer, prompt: str, num_ctx: int, *, may_cut: bool = True, parse_special: bool = True
) -> tuple[int, ...]:
    """Token ids of *prompt*, with one BOS where the model wants one, even if the text brings its own.

    Of a prompt that is far longer than *num_ctx* the middle is left out, which cutting it would do anyway.

    Raises:
        ContextOverflow: the prompt is that long, and must not be cut.
    """

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=True, parse_special=parse_special)

    token_ids, is_whole = encode_ends(encode, prompt, num_ctx)
    if not is_whole and not may_cut:
        raise ContextOverflow(
            f"prompt of {len(prompt)} characters, more than {len(token_ids)} tokens, does not fit num_ctx={num_ctx}: "
            "raise num_ctx, shorten the prompt, or allow truncate and shift",
            num_ctx=num_ctx,
        )
    twice = len(token_ids) > 1 and token_ids[0] == token_ids[1] == tokenizer.bos_id
    return tuple(token_ids[1:] if twice and tokenizer.add_bos else token_ids)


async def outputs(
    services: Services, prepared: PreparedRequest, loaded: LoadedModel, token_ids: tuple[int, ...]
) -> AsyncGenerator[TextChunk | Finished, None]:
    """Run *prepared* on the model that was loaded for it. What it took is logged, prompts and answers are not."""
    request = prepared.request
    request_id = secrets.token_hex(8)
    with structlog.contextvars.bound_contextvars(request_id=request_id, model=request.model):
        log.info("request.accepted", prompt_tokens=len(token_ids))
    generation = GenerationRequest(
        request_id=request_id,
        token_ids=token_ids,
        options=prepared.options,
        truncate=request.truncate,
        shift=request.shift,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
    )
    async with aclosing(services.generations.outputs(loaded, generation)) as running:
        try:
            async for output in running:
                if isinstance(output, Finished):
                    log.info("request.finished", request_id=request_id, **_facts_for_log(output))
                yield output
        except OllamaZmqError as error:
            log.info("request.failed", request_id=request_id, error=str(error))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            log.info("request.canceled", request_id=request_id)
            raise


def _facts_for_log(finished: Finished) -> dict[str, object]:
    return {
        "reason": finished.reason,
        "prompt_tokens": finished.prompt_tokens,
        "output_tokens": finished.output_tokens,
        "prefill_ms": round(finished.prefill_s * 1e3),
        "decode_ms": round(finished.decode_s * 1e3),
        "drafted": finished.drafted,
        "accepted": finished.accepted,
    }


def metrics(prepared: PreparedRequest, ready_ns: int, finished: Finished) -> dict[str, Any]:
    """The counts and durations of the last chunk. *ready_ns*: when the model was there, monotonic."""
    return {
        "total_duration": time.monotonic_ns() - prepared.started_ns,
        "load_duration": ready_ns - prepared.started_ns,
        "prompt_eval_count": finished.prompt_tokens,
        "prompt_eval_duration": round(finished.prefill_s * 1e9),
        "eval_count": finished.output_tokens,
        "eval_duration": max(round(finished.decode_s * 1e9), bool(finished.output_tokens)),  # clients divide by it
    }


def logprobs_of(piece: TextChunk) -> list[Logprob]:
    """The piece's log-probabilities as clients expect them."""
    return [
        Logprob(entry.token, entry.logprob, list(entry.data), [_top_logprob(other) for other in entry.top])
        for entry in piece.logprobs
    ]


def _top_logprob(entry: TokenLogprob) -> TopLogprob:
    return TopLogprob(entry.token, entry.logprob, list(entry.data))
