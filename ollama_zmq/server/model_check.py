"""Whether a model can run, asked before it is made: its architecture, tensors, vocabulary and chat template."""

from __future__ import annotations

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.gguf import GgufFile
from ollama_zmq.models.network import Network
from ollama_zmq.text.model_template import chat_template
from ollama_zmq.text.tokenizer import has_vocabulary, load_tokenizer


def check_template(source: str) -> None:
    """Refuse a Modelfile's TEMPLATE that is none. Raises RequestError."""
    if defect := chat_template({}, source).defect:
        raise RequestError(f"TEMPLATE does not parse: {defect}")


def check_model(file: GgufFile, go_template: str | None) -> None:
    """Refuse a model that could not be loaded, or not be talked to.

    Raises:
        ModelFileError: its architecture, a tensor or its vocabulary is of a kind that this version does not run.
        RequestError: *go_template*, or without one the file's own template, does not parse.
    """
    metadata = Network(file).gguf.metadata
    if has_vocabulary(metadata):
        load_tokenizer(metadata)
    if defect := chat_template(metadata, go_template).defect:
        raise RequestError(f"the chat template does not parse: {defect}; give the Modelfile another TEMPLATE")
