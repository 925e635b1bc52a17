"""Files in Ollama's own spelling are read as those that llama.cpp's converter makes."""

import pytest

from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.names import as_written
from ollama_zmq.models.network import Network
from ollama_zmq.ops.program import verify
from tests.oracle.test_oracle import write_gguf

# recipe -> its name there, keys and tensors that are called otherwise, keys that are not there, keys that are besides
OTHERWISE = {
    "gpt-oss": (
        "gptoss",
        {},
        {"attn_output": "attn_out", "attn_sinks.weight": "attn_sinks", "post_attention_norm": "ffn_norm"},
        ("rope.scaling.type", "expert_feed_forward_length"),
        {"tokenizer.ggml.pre": "default"},
    ),
    "gemma3": (
        "gemma3",
        {"rope.freq_base": "rope.global.freq_base", "rope.freq_base_swa": "rope.local.freq_base"},
        {},
        (),
        {"gemma3.mm.tokens_per_image": 256},
    ),
    "mistral3": (
        "mistral3",
        {
            "attention.temperature_scale": "rope.scaling_beta",
            "rope.scaling.yarn_log_multiplier": "rope.scaling.mscale_all_dim",
        },
        {},
        (),
        {"mistral3.rope.scaling.beta_fast": 32.0, "mistral3.rope.scaling.beta_slow": 1.0},
    ),
    "olmo3": ("olmo3", {}, {}, (), {}),
    "glm4": (
        "glmocr",
        {},
        {"attn_output": "attn_out", "post_attention_norm": "post_attn_norm", "post_ffw_norm": "post_ffn_norm"},
        (),
        {},
    ),
}


def in_their_spelling(gguf, name, keys, tensors, without, added):
    ours = gguf.architecture
    metadata = {"general.architecture": name} | added
    for key in gguf.metadata:
        if key.startswith(f"{ours}.") and (short := key.removeprefix(f"{ours}.")) not in without:
            metadata[f"{name}.{keys.get(short, short)}"] = gguf.metadata[key]
    dropped = [key for key in gguf.metadata if key.startswith(f"{ours}.")]
    renamed = {}
    for full, info in gguf.tensors.items():
        for old, new in tensors.items():
            full = full.replace(f".{old}", f".{new}")
        renamed[full] = info
    return gguf.with_header(gguf.metadata.changed(metadata, dropped), renamed)


@pytest.mark.parametrize("recipe", OTHERWISE)
def test_a_file_in_ollamas_spelling_is_the_same_program(recipe, tmp_path):
    path, _, _ = write_gguf(recipe, tmp_path)
    with open_gguf(path) as gguf:
        theirs = in_their_spelling(gguf, *OTHERWISE[recipe])
        assert set(theirs.tensors) != set(gguf.tensors) or dict(theirs.metadata) != dict(gguf.metadata)
        found, wanted = Network(theirs).whole_program(), Network(gguf).whole_program()
        assert found == wanted
        assert verify(found)


def test_gpt_oss_has_one_pre_tokenizer_whatever_the_file_says(tmp_path):
    path, _, _ = write_gguf("gpt-oss", tmp_path)
    with open_gguf(path) as gguf:
        assert as_written(in_their_spelling(gguf, *OTHERWISE["gpt-oss"])).metadata["tokenizer.ggml.pre"] == "gpt-4o"


@pytest.mark.parametrize(("pre", "wanted"), [(None, "llama-bpe"), ("default", "llama-bpe"), ("smaug-bpe", "smaug-bpe")])
def test_llama_3_is_known_by_its_end_of_turn(tmp_path, pre, wanted):
    path, _, _ = write_gguf("llama", tmp_path)
    tokens = [str(i) for i in range(128_256)]
    tokens[128_009] = "<|eot_id|>"
    said = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 128_001}
    with open_gguf(path) as gguf:
        metadata = gguf.metadata.changed(said | ({"tokenizer.ggml.pre": pre} if pre else {}))
        read = as_written(gguf.with_header(metadata, gguf.tensors)).metadata
    assert read["tokenizer.ggml.pre"] == wanted
    assert read["tokenizer.ggml.eos_token_id"] == (128_009 if wanted == "llama-bpe" else 128_001)
