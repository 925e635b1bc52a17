"""A model file as this version reads it: other spellings of names, keys and tensors are translated once, at the door.

Behind :func:`as_written` nobody meets another spelling. Files that Ollama's own converters made, until August 2026, lie
in people's stores; what is translated for each stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ollama_zmq.formats.gguf import GgufFile

BESIDE_TEXT = ("v.", "mm.", "a.", "s.", "mtp.", "model.vision_tower.")  # encoders, projectors, heads that guess more
DERIVED = (".attn_rot_embd.weight", ".rope_freqs.weight")  # per-layer copies of what the header says, in old files


def belongs_to_text(name: str) -> bool:
    """Whether a tensor is part of the text model."""
    return not name.startswith(BESIDE_TEXT) and not name.endswith(DERIVED)


@dataclass(frozen=True, slots=True)
class Spelling:
    """Another way to write an architecture.

    Attributes:
        architecture: what it is called here.
        applies: whether a file of that name is written so.
        keys: another name of a key -> its name here, both without the architecture in front.
        tensors: another name of a tensor within its layer -> its name here, both without what stands behind the dot.
        adds: keys of the header that such files leave out or have wrong -> what they are; of the architecture's own
            keys those that are there stay.
    """

    architecture: str
    applies: Callable[[GgufFile], bool] = lambda gguf: True
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    adds: Callable[[GgufFile], Mapping[str, object]] = lambda gguf: {}


def _gpt_oss(gguf: GgufFile) -> Mapping[str, object]:
    return {"gpt-oss.rope.scaling.type": "yarn", "tokenizer.ggml.pre": "gpt-4o"}  # whatever the file says


def _gemma3_of_ollama(gguf: GgufFile) -> bool:
    signs = ("gemma3.mm.tokens_per_image", "gemma3.rope.global.freq_base", "gemma3.rope.local.freq_base")
    sees = any(name.startswith(("v.", "mm.")) for name in gguf.tensors)
    return sees or any(key in gguf.metadata for key in signs) or f"gemma3.{EPSILON}" not in gguf.metadata


def _gemma3(gguf: GgufFile) -> Mapping[str, object]:
    added: dict[str, object] = {
        f"gemma3.{EPSILON}": 1e-6,
        "gemma3.rope.freq_base": 1e6,
        "gemma3.rope.freq_base_swa": 1e4,
    }
    context = gguf.metadata.get("gemma3.context_length")
    if isinstance(context, int) and context >= GEMMA3_STRETCHED:
        added |= {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    return added


def _mistral3(gguf: GgufFile) -> Mapping[str, object]:
    return {} if "tokenizer.ggml.pre" in gguf.metadata else {"tokenizer.ggml.pre": "tekken"}


def _glm_ocr(gguf: GgufFile) -> Mapping[str, object]:
    length = gguf.metadata.get("glmocr.attention.key_length")
    added = {} if length is None else {"glm4.rope.dimension_count": length}
    return added | {"tokenizer.ggml.pre": "chatglm-bpe"}


def _llama3_without_pre_tokenizer(gguf: GgufFile) -> bool:
    if gguf.metadata.get("tokenizer.ggml.pre") not in (None, "default"):
        return False
    tokens = gguf.metadata.array_length(TOKENS) or 0
    return tokens > LLAMA3_END_OF_TURN and _texts(gguf)[LLAMA3_END_OF_TURN] == "<|eot_id|>"


def _llama3(gguf: GgufFile) -> Mapping[str, object]:
    end = gguf.metadata.get("tokenizer.ggml.eos_token_id")
    added: dict[str, object] = {"tokenizer.ggml.pre": "llama-bpe"}
    return added | ({"tokenizer.ggml.eos_token_id": LLAMA3_END_OF_TURN} if end == LLAMA3_END_OF_TEXT else {})


def _texts(gguf: GgufFile) -> list[object]:
    texts = gguf.metadata.get(TOKENS)
    return texts if isinstance(texts, list) else []


TOKENS, EPSILON = "tokenizer.ggml.tokens", "attention.layer_norm_rms_epsilon"
LLAMA3_END_OF_TEXT, LLAMA3_END_OF_TURN = 128_001, 128_009
GEMMA3_STRETCHED = 131_072  # the context of those whose layers without a window are stretched by 8
SPELLINGS: Mapping[str, Spelling] = {
    "gemma3": Spelling(
        "gemma3",
        _gemma3_of_ollama,
        keys={"rope.global.freq_base": "rope.freq_base", "rope.local.freq_base": "rope.freq_base_swa"},
        adds=_gemma3,
    ),
    "glmocr": Spelling(
        "glm4",
        tensors={
            "attn_out": "attn_output",
            "post_attn_norm": "post_attention_norm",
            "post_ffn_norm": "post_ffw_norm",
        },
        adds=_glm_ocr,
    ),
    "gptoss": Spelling(
        "gpt-oss",
        tensors={"attn_out": "attn_output", "attn_sinks": "attn_sinks.weight", "ffn_norm": "post_attention_norm"},
        adds=_gpt_oss,
    ),
    "llama": Spelling("llama", _llama3_without_pre_tokenizer, adds=_llama3),
    "mistral3": Spelling(
        "mistral3",
        lambda gguf: "mistral3.rope.scaling.beta_fast" in gguf.metadata,
        keys={
            "rope.scaling.beta_fast": "rope.scaling.yarn_beta_fast",
            "rope.scaling.beta_slow": "rope.scaling.yarn_beta_slow",
            "rope.scaling.mscale_all_dim": "rope.scaling.yarn_log_multiplier",
            "rope.scaling_beta": "attention.temperature_scale",
        },
        adds=_mistral3,
    ),
    "olmo3": Spelling("olmo2"),
    "qwen25vl": Spelling("qwen2vl", keys={"rope.mrope_section": "rope.dimension_sections"}),
}


def as_written(gguf: GgufFile) -> GgufFile:
    """Return the same file under the names that llama.cpp gives to architectures, keys and tensors."""
    name = gguf.architecture
    spelling = SPELLINGS.get(name)
    if spelling is None or not spelling.applies(gguf):
        return gguf
    ours: dict[str, object] = {"general.architecture": spelling.architecture}
    for key in gguf.metadata:
        if key.startswith(f"{name}."):
            short = key.removeprefix(f"{name}.")
            ours[f"{spelling.architecture}.{spelling.keys.get(short, short)}"] = gguf.metadata[key]
    added = {key: value for key, value in spelling.adds(gguf).items() if key not in ours}
    renamed = ((_renamed(old, spelling), info) for old, info in gguf.tensors.items())
    tensors = {new: replace(info, name=new) for new, info in renamed}
    return gguf.with_header(gguf.metadata.changed(added | ours), tensors)


def _renamed(tensor: str, spelling: Spelling) -> str:
    """Return *tensor* with its own part of the name translated: ``blk.0.attn_out.bias`` has ``attn_out``."""
    for old, new in spelling.tensors.items():
        head, found, tail = tensor.rpartition(old)
        if found and (not head or head.endswith(".")) and (not tail or tail in (".weight", ".bias", ".scale")):
            return f"{head}{new}{tail}"
    return tensor
