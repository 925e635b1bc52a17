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
        adds: keys that such files leave out -> what they then are; those that are there stay.
    """

    architecture: str
    applies: Callable[[GgufFile], bool] = lambda gguf: True
    keys: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    adds: Callable[[GgufFile], Mapping[str, object]] = lambda gguf: {}


SPELLINGS: Mapping[str, Spelling] = {
    "qwen25vl": Spelling("qwen2vl", keys={"rope.mrope_section": "rope.dimension_sections"})
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
    tensors = {new: replace(info, name=new) for old, info in gguf.tensors.items() for new in (_renamed(old, spelling),)}
    return gguf.with_header(gguf.metadata.changed(added | ours), tensors)


def _renamed(tensor: str, spelling: Spelling) -> str:
    """Return *tensor* with its own part of the name translated: ``blk.0.attn_out.bias`` has ``attn_out``."""
    for old, new in spelling.tensors.items():
        head, found, tail = tensor.rpartition(old)
        if found and (not head or head.endswith(".")) and (not tail or tail in (".weight", ".bias", ".scale")):
            return f"{head}{new}{tail}"
    return tensor
