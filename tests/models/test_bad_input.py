"""A file whose keys or tensors cannot be right is refused with the key or tensor, the value and the file."""

import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from tests.models.test_architectures import LATENT, MIXTURE, SHAPES
from tests.models.tiny import write_tiny

WRONG = {
    "heads of too few layers": (
        "llama",
        {},
        {"attention.head_count_kv": [2, 2, 2]},
        "attention.head_count_kv = 3 numbers",
    ),
    "heads that do not divide": (
        "llama",
        {},
        {"attention.head_count_kv": 3},
        "attention.head_count = 4, expected a multiple",
    ),
    "more experts used than there are": ("qwen3moe", MIXTURE, {"expert_used_count": 9}, "expert_used_count = 9"),
    "more experts than the router has rows": ("qwen3moe", MIXTURE, {"expert_count": 9}, "rows, but expert_count is 9"),
    "a kind of scores nobody knows": (
        "glm4moe",
        MIXTURE,
        {"expert_gating_func": 9},
        "expert_gating_func = 9, expected",
    ),
    "no window": ("gemma2", {}, {"attention.sliding_window": 0}, "attention.sliding_window = 0, expected"),
    "a pattern of too few layers": (
        "gemma3",
        {"attention.sliding_window": 40},
        {"attention.sliding_window_pattern": [True, False]},
        "attention.sliding_window_pattern = 2 numbers",
    ),
    "an odd part turned": (
        "qwen3",
        {},
        {"rope.dimension_count": 7},
        "rope.dimension_count = 7, expected an even number",
    ),
    "more turned than a head has": ("qwen3", {}, {"rope.dimension_count": 18}, "rope.dimension_count = 18, expected"),
    "no base": ("qwen3", {}, {"rope.freq_base": 0.0}, "rope.freq_base = 0.0, expected"),
    "a scaling nobody knows": (
        "qwen3",
        {},
        {"rope.scaling.type": "bent"},
        "rope.scaling.type = 'bent', expected one of",
    ),
    "YaRN that shrinks": (
        "qwen3",
        {"rope.scaling.type": "yarn"},
        {"rope.scaling.factor": 0.5},
        "rope.scaling.factor = 0.5, expected",
    ),
    "no latent rank": (
        "deepseek2",
        MIXTURE | LATENT,
        {"attention.kv_lora_rank": None},
        "attention.kv_lora_rank is missing",
    ),
    "a latent rank that does not fit": (
        "deepseek2",
        MIXTURE | LATENT,
        {"attention.kv_lora_rank": 20},
        "rope.dimension_count = 8, expected attention.key_length 32 - 20",
    ),
    "logits divided by nothing": ("granite", {}, {"logit_scale": 0.0}, "logit_scale = 0, expected"),
    "slopes of too few layers": (
        "apertus",
        {"xielu.alpha_p": 0.5, "xielu.alpha_n": 0.5, "xielu.beta": 0.5, "xielu.eps": -1e-6},
        {"xielu.beta": [0.5]},
        "xielu.beta = 1 numbers",
    ),
}


@pytest.mark.parametrize(("name", "keys", "wrong", "words"), WRONG.values(), ids=WRONG)
def test_a_key_that_cannot_be_right_is_named(tmp_path, name, keys, wrong, words):
    path = write_tiny(tmp_path / "good.gguf", name, keys, shapes=SHAPES.get(name))
    with open_gguf(path) as gguf:
        changes = {f"{name}.{key}": value for key, value in wrong.items() if value is not None}
        without = [f"{name}.{key}" for key, value in wrong.items() if value is None]
        with pytest.raises(ModelFileError) as error:
            Network(gguf.with_header(gguf.metadata.changed(changes, without), gguf.tensors))
    assert words in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_tensors_of_two_architectures_are_not_mixed(tmp_path):
    path = write_tiny(tmp_path / "good.gguf", "qwen3")
    with (
        open_gguf(path) as gguf,
        pytest.raises(ModelFileError, match=r"_norm\.weight' is not supported"),
    ):
        Network(gguf.with_header(gguf.metadata.changed(as_llama(gguf)), gguf.tensors))


def as_llama(gguf):
    keys = {
        f"llama.{key.removeprefix('qwen3.')}": gguf.metadata[key] for key in gguf.metadata if key.startswith("qwen3.")
    }
    return keys | {"general.architecture": "llama"}
