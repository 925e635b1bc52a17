"""Which kinds of models can be converted, by the class that their ``config.json`` names."""

from __future__ import annotations

from collections.abc import Mapping

from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Conversion
from ollama_zmq.convert.decoders import CONVERSIONS as DECODERS
from ollama_zmq.convert.deepseek import CONVERSIONS as DEEPSEEK
from ollama_zmq.convert.encoders import CONVERSIONS as ENCODERS
from ollama_zmq.convert.experts import CONVERSIONS as EXPERTS
from ollama_zmq.convert.gpt_oss import CONVERSIONS as GPT_OSS
from ollama_zmq.convert.plain_decoders import CONVERSIONS as PLAIN_DECODERS
from ollama_zmq.errors import ModelFileError

CONVERSIONS: Mapping[str, Conversion] = DECODERS | PLAIN_DECODERS | EXPERTS | GPT_OSS | DEEPSEEK | ENCODERS


def conversion_of(config: CheckpointConfig) -> Conversion:
    """Return how a model of this config is converted. Raises ModelFileError if nobody knows."""
    found = CONVERSIONS.get(config.model_class)
    if found is None:
        known = ", ".join(sorted(CONVERSIONS))
        raise ModelFileError(f"config.json: architectures names {config.model_class!r:.80}; known are {known}")
    return found
