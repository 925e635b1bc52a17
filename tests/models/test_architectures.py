"""Laws that every architecture obeys, to the bit, on the CPU device. A new one is a line in ``TINY``."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq import models
from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.devices.registry import open_device
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.models.registry import architecture, known
from ollama_zmq.ops.program import verify
from ollama_zmq.ops.state import PAGE_SLOTS
from tests.models.running import cut, running
from tests.models.tiny import D, E, G, H, X, write_tiny

MIXTURE = {"expert_count": X, "expert_used_count": 2}
LATENT = {
    "attention.head_count_kv": 1,
    "attention.kv_lora_rank": 24,
    "attention.key_length": 32,
    "attention.value_length": 24,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 12,
    "rope.dimension_count": 8,
}
TINY = {  # architecture, or architecture and variant -> keys of a small model
    "llama": {},
    "llama of experts": MIXTURE,
    "apertus": {"xielu.alpha_p": 0.5, "xielu.alpha_n": [0.5, 0.4, 0.3, 0.2], "xielu.beta": 0.5, "xielu.eps": -1e-6},
    "arcee": {},
    "cohere2": {"attention.sliding_window": 40, "logit_scale": 0.5},
    "command-r": {"logit_scale": 0.5},
    "deepseek2": MIXTURE | LATENT | {"leading_dense_block_count": 1, "expert_gating_func": 2},
    "dots1": MIXTURE | {"leading_dense_block_count": 1},
    "ernie4_5": {},
    "ernie4_5-moe": MIXTURE | {"leading_dense_block_count": 1, "interleave_moe_layer_step": 2},
    "falcon": {},
    "gptneox": {"rope.dimension_count": 8},
    "gptneox in series": {"rope.dimension_count": 8, "use_parallel_residual": False},
    "hunyuan-moe": MIXTURE,
    "jais2": {},
    "minimax-m2": MIXTURE | {"rope.dimension_count": 8},
    "nemotron": {"rope.dimension_count": 8},
    "olmo": {"attention.clamp_kqv": 0.8},
    "phi2": {"rope.dimension_count": 8},
    "starcoder2": {},
    "chatglm": {"rope.dimension_count": 8},
    "exaone4": {"attention.sliding_window": 40, "attention.sliding_window_pattern": 2},
    "gpt2": {},
    "starcoder": {"attention.head_count_kv": 1},
    "gemma": {},
    "gemma2": {"attention.sliding_window": 40},
    "gemma3": {"attention.sliding_window": 40, "attention.sliding_window_pattern": 2},
    "glm4": {"rope.dimension_count": 8},
    "glm4moe": MIXTURE | {"leading_dense_block_count": 1, "rope.dimension_count": 8, "expert_weights_scale": 1.5},
    "gpt-oss": MIXTURE | {"attention.sliding_window": 40},
    "granitemoe": MIXTURE,
    "granite": {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 2.0},
    "hunyuan-dense": {},
    "mistral3": {"attention.temperature_scale": 0.3, "rope.scaling.original_context_length": 16},
    "olmo2": {"attention.sliding_window": 40},
    "olmoe": MIXTURE,
    "phi3": {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.2},
    "qwen2": {},
    "qwen2moe": MIXTURE,
    "qwen3": {},
    "qwen3moe": MIXTURE,
    "qwen3vlmoe": MIXTURE,
    "qwen3vl": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {"rope.dimension_count": 8},
    "qwen2vl": {"rope.dimension_sections": [4, 2, 2, 0]},
}
WHOLE_NORMS = {"attn_q_norm": (H * E,), "attn_k_norm": (G * E,)}
OF_LATENT = {
    "attn_q": (H * 24, D),
    "attn_q_a": (40, D),
    "attn_q_a_norm": (40,),
    "attn_q_b": (H * 24, 40),
    "attn_kv_a_mqa": (32, D),
    "attn_kv_a_norm": (24,),
    "attn_k_b": (H, 24, 16),
    "attn_v_b": (H, 12, 24),
    "attn_output": (D, H * 12),
}
SHAPES = {"deepseek2": OF_LATENT} | {
    "olmo2": WHOLE_NORMS,
    "olmoe": WHOLE_NORMS,
    "minimax-m2": WHOLE_NORMS,
    "starcoder": {"attn_k": (E, D), "attn_v": (E, D)},
}  # of tensors that are not as wide as usual
TOKENS = np.random.default_rng(0).integers(3, 250, size=2 * PAGE_SLOTS + 7, dtype=np.int32)
FEW_TOKENS = TOKENS[:9]
CHUNKS = (1, 7, 64)


@pytest.fixture(scope="module")
def device():
    """A CPU device; a test that leaves something open fails."""
    opened = open_device("cpu", threads=2, budget=Budget(1 << 30))
    yield opened
    assert opened.budget.used == 0
    opened.close()


@pytest.fixture(params=TINY)
def path(request, tmp_path):
    name = request.param.split()[0]
    without = ("attn_q",) if name == "deepseek2" else ()
    return write_tiny(tmp_path / "tiny.gguf", name, TINY[request.param], shapes=SHAPES.get(name), without=without)


def test_every_architecture_is_under_these_laws():
    assert {name.split()[0] for name in TINY} == set(known())


def test_a_file_names_its_architectures(monkeypatch, tmp_path):
    (tmp_path / "made_up.py").write_text("ARCHITECTURES = {'made-up': 'made up'}")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert architecture("made-up") == "made up"


@pytest.mark.parametrize("name", ["bert", "", "llama.x", "../llama", "registry", "LLAMA", "ll\u00e4ma", "a" * 999])
def test_an_architecture_that_is_not_there_is_named_beside_those_that_are(name):
    with pytest.raises(ModelFileError, match=r"^architecture '.{0,80}' is not supported; this version runs: .*llama"):
        architecture(name)


def test_decode_continues_prefill(device, path):
    with running(device, path) as model:
        at_once = model.run(TOKENS)
    with running(device, path) as model:
        prefill = model.run(TOKENS[:-3])
        decoded = [model.run(TOKENS[i : i + 1], start=i) for i in range(len(TOKENS) - 3, len(TOKENS))]
    assert_array_equal(np.concatenate([prefill, *decoded]), at_once)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_do_not_change_the_bits(device, path, chunk):
    with running(device, path) as model:
        at_once = model.run(TOKENS)
    with running(device, path) as model:
        parts = [model.run(TOKENS[i : i + chunk], start=i) for i in range(0, len(TOKENS), chunk)]
    assert_array_equal(np.concatenate(parts), at_once)


def test_two_stages_are_one_model(device, path):
    """Cut before every layer."""
    with running(device, path) as model:
        n_layers, whole = model.network.n_layers, model.run(FEW_TOKENS)
    for border in range(1, n_layers):
        with running(device, path, lambda network, border=border: cut(network, border)) as model:
            assert_array_equal(model.run(FEW_TOKENS), whole)


def test_a_stage_for_each_layer_is_one_model(device, path):
    with running(device, path) as model:
        n_layers, whole = model.network.n_layers, model.run(FEW_TOKENS)
    with running(device, path, lambda network: cut(network, *range(1, n_layers))) as model:
        assert_array_equal(model.run(FEW_TOKENS), whole)


def test_what_follows_the_lookup_is_done_once_wherever_the_model_is_cut(device, path, monkeypatch):
    """As in an architecture that scales its embedding."""
    with running(device, path) as model:
        n_layers, plain = model.network.n_layers, model.run(FEW_TOKENS)
        kind = type(model.network.model)
    monkeypatch.setattr(kind, "enter", lambda self, ops, hidden_state, given: ops.add(hidden_state, hidden_state))
    with running(device, path) as model:
        whole = model.run(FEW_TOKENS)
    assert not np.allclose(whole, plain, rtol=0.01)
    for cuts in ((), (1,), range(1, n_layers)):
        with running(device, path, lambda network, cuts=cuts: cut(network, *cuts)) as model:
            assert_array_equal(model.run(FEW_TOKENS), whole)


def test_the_future_does_not_leak(device, path):
    other = TOKENS.copy()
    other[70:] = other[70:][::-1]
    with running(device, path) as model:
        first, second = model.run(TOKENS), model.run(other)
    assert_array_equal(first[:70], second[:70])
    assert not np.array_equal(first[-1], second[-1])


def test_the_past_matters(device, path):
    other = TOKENS.copy()
    other[0] += 1
    with running(device, path) as model:
        first, second = model.run(TOKENS), model.run(other)
    assert not np.allclose(first[-1], second[-1], rtol=1e-3)


def test_sequences_of_one_pass_do_not_touch_each_other(device, path):
    lengths, tables = [5, 3, 1], [[1], [3], [0]]
    tokens = TOKENS[: sum(lengths)]
    with running(device, path) as model:
        together = model.run_step(tokens, Step.of(lengths, [0, 0, 0], tables, range(len(tokens))))
        alone = [model.run(part, pages=(2,)) for part in np.split(tokens, np.cumsum(lengths)[:-1])]
    assert_array_equal(together, np.concatenate(alone))


def test_only_the_rows_asked_for_leave(device, path):
    with running(device, path) as model:
        everything = model.run(FEW_TOKENS)
        assert_array_equal(model.run(FEW_TOKENS, rows=[8, 2]), everything[[8, 2]])
        assert model.run(FEW_TOKENS, rows=[]).shape == (0, model.network.vocab_size)


def test_which_pages_are_used_does_not_matter(device, path):
    with running(device, path) as model:
        assert_array_equal(model.run(TOKENS, pages=(2, 0, 3)), model.run(TOKENS, pages=(0, 1, 2)))


def test_programs_of_the_same_layers_have_the_same_id(path):
    with open_gguf(path) as gguf:
        one, two = Network(gguf), Network(gguf)
        assert one.layers_program(range(1, 3)).id == two.layers_program(range(1, 3)).id
        assert one.layers_program(range(1, 3)).id != one.layers_program(range(1, 2)).id


def test_bytes_are_counted_as_the_file_has_them(path):
    with open_gguf(path) as gguf:
        network = Network(gguf)
        layers = sum(network.layer_nbytes(i) for i in range(network.n_layers))
        rest = {name: info.nbytes for name, info in gguf.tensors.items() if not name.startswith("blk.")}
        assert layers + sum(rest.values()) == sum(info.nbytes for info in gguf.tensors.values())
        assert network.head_nbytes() == rest["token_embd.weight"] + rest["output.weight"]
        assert network.kv_nbytes(PAGE_SLOTS + 1) == 2 * network.kv_nbytes(1)


def test_a_q8_0_cache_is_what_every_program_declares_and_what_is_counted(path):
    with open_gguf(path) as gguf:
        half, q8_0 = Network(gguf), Network(gguf, "q8_0")
        sizes = [state.shape for state in half.states(0)]  # heads, numbers of a key, of a value
        assert half.kv_nbytes(1) == sum(G * (E + F) * 2 * PAGE_SLOTS for G, E, F in sizes)
        assert q8_0.kv_nbytes(1) == sum(G * (-(-E // 32) + -(-F // 32)) * 34 * PAGE_SLOTS for G, E, F in sizes)
        for program in (q8_0.layers_program(range(1, 3)), q8_0.whole_program()):
            assert {cache.type for cache in program.states} == {"q8_0"}


def test_a_program_needs_only_its_own_layers(path):
    with open_gguf(path) as gguf:
        program = Network(gguf).layers_program(range(1, 3))
    of_layers = {weight.name for weight in program.weights if weight.name.startswith("blk.")}
    assert {name.split(".")[1] for name in of_layers} == {"1", "2"}
    others = {weight.name for weight in program.weights} - of_layers
    assert not others & {"token_embd.weight", "output.weight", "output_norm.weight"}
    assert [cache.name for cache in program.states] == ["kv.1", "kv.2"]
    assert verify(program).output.shape == ("T", 64)


@pytest.mark.parametrize("name", ["mamba", "base", "keys", "../llama", "", "os"])
def test_an_unsupported_architecture_is_named(name):
    with pytest.raises(ModelFileError, match=f"architecture '{name}' is not supported"):
        architecture(name)


def test_a_table_of_positions_that_is_too_short_is_refused_with_its_file(tmp_path):
    path = write_tiny(tmp_path / "short.gguf", "gpt2", {"context_length": 513})
    with open_gguf(path) as file, pytest.raises(ModelFileError, match=r"short\.gguf: .*position_embd.* 512 rows.* 513"):
        Network(file)
