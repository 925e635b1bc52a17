"""Structured logs. An event is ``noun.verb_past`` and its facts are fields.

    server.started      url models_dir version
    server.stopped
    setting.ignored     reason
    store.pruned        files
    store.not_pruned    error
    store.read_only     models_dir
    connection.not_accepted reason
    connection.closed   reason phase
    connection.refused  status reason (what came is no request that we take)
    request.accepted    request_id model prompt_tokens
    request.finished    request_id reason prompt_tokens output_tokens prefill_ms decode_ms
                        drafted accepted
    request.canceled    request_id (its client has left)
    request.abandoned   path received (its client left before its body was complete)
    request.failed      request_id error
    request.broken      error (with traceback: a fault of our own)
    option.ignored      name value
    options.ignored     more (of one request or Modelfile, beside those that are named)
    context.reduced     num_ctx trained
    manifest.rejected   model error
    model.loaded        model num_ctx load_ms
    model.unloaded      model
    tensors.skipped     model tensors first (of the file, which are no part of the text model)
    model.lost          error
    tokenizer.pre_missed    using
    broker.leased       broker address
    broker.lost         broker reason
    effect.failed       effect error
    broker.failed       (with traceback: a fault of our own)
    worker.absent       worker reason (of the list, at the start of the server)
    worker.lost         worker reason
    workers.missing     model missing
    peer.refused        address
    peer.cut            peer reason more (cut since the line before, of which none is logged)
    message.rejected    peer error
    message.dropped     peer
    message.unsendable  peer error
    blob.truncated      blob nbytes
    blob.unreadable     blob error
    work.failed         program microbatch
    program.defined     program weights resident_bytes

``debug`` for each message, ``info`` for what an operator counts, ``warning`` for what we survived,
``error`` for what we did not. Nothing is logged per token. Prompts and completions are never logged. Facts that
came from elsewhere (names, reasons of workers) cannot act on a terminal: control characters come out as escapes.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from ollama_zmq.printable import printable_line, printable_text
from ollama_zmq.variables import is_on


def configure(level: int | None = None) -> None:
    """Send structlog's events to stderr as text, one line each; ``OLLAMA_DEBUG=1`` shows debug events."""
    import structlog

    if level is None:
        level = logging.DEBUG if is_on(os.environ.get("OLLAMA_DEBUG", "")) else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _printable,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _printable(_: object, __: str, event: Any) -> Any:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = printable_text(value) if name in ("exception", "stack") else printable_line(value)
    return event
