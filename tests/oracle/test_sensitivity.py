"""A golden proves something of a key only where another value of the key gives other logits."""

from collections.abc import Mapping

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import open_device
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models import network as network_module
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.network import Network
from tests.models.running import loaded
from tests.oracle.test_oracle import RUNNING, write_gguf

LEAST_CHANGE = 1e-4  # of a logit, in deviations of all logits
FAR = {"rope.scaling.original_context_length": 64}  # long and short factors change places at the trained context
BLIND = {  # key that is read -> why its value does not show in logits
    "context_length": "bounds what a request may ask for",
    "expert_count": "the rows of the router say how many there are; fewer than are used is refused",
}
IN_NO_GOLDEN = {  # key that is read -> why no golden has it
    "nextn_predict_layers": "such layers are skipped: tests/models/test_architectures.py",
    "rope.scale_linear": "the spelling of rope.scaling.factor in old files",
    "rope.scaling.attn_factor": "transformers has the whole magnitude in its place",
    "rope.scaling.yarn_log_multiplier": "of mistral3 and deepseek2",
}
IN_SHAPES = {  # key that a converter writes and nobody reads -> what says the same
    "attention.q_lora_rank": "rows of attn_q_a",
    "attention.value_length_mla": "rows of attn_v_b",
    "attention.layer_norm_rms_epsilon": "the other epsilon: a recipe's config has one under every name",
    "expert_feed_forward_length": "rows of ffn_gate_exps",
    "expert_shared_count": "rows of ffn_gate_shexp",
    "expert_shared_feed_forward_length": "rows of ffn_gate_shexp",
    "feed_forward_length": "rows of ffn_gate",
    "use_parallel_residual": "whether there is ffn_norm",
    "vocab_size": "rows of token_embd",
}


class Recorded(Mapping):
    """Pairs that remember which keys they were asked for."""

    def __init__(self, pairs, asked):
        self.pairs, self.asked = pairs, asked

    def __getitem__(self, key):
        self.asked.add(key)
        return self.pairs[key]

    def __iter__(self):
        return iter(self.pairs)

    def __len__(self):
        return len(self.pairs)


class Model:
    """A tiny model whose file is open: which of its keys are read, and what it computes where one of them differs."""

    def __init__(self, gguf, ids, device, monkeypatch):
        self.gguf, self.ids, self.device = gguf, ids, device
        self.prefix = f"{gguf.architecture}."
        self.there = {key.removeprefix(self.prefix) for key in gguf.metadata if key.startswith(self.prefix)}
        asked = set()
        with monkeypatch.context() as patch:
            patch.setattr(network_module, "Keys", lambda pairs, *rest: Keys(Recorded(pairs, asked), *rest))
            Network(gguf)
        self.read = {key.removeprefix(self.prefix) for key in asked}

    def logits(self, changes=None):
        """Logits [T, V] of the file with *changes* in its header; None where it is refused."""
        changed = {self.prefix + key: value for key, value in (changes or {}).items()}
        try:
            network = Network(self.gguf.with_header(self.gguf.metadata.changed(changed), self.gguf.tensors))
        except ModelFileError:
            return None
        with loaded(self.device, network) as stages:
            return stages.run(self.ids)


@pytest.fixture(scope="module")
def device():
    opened = open_device("cpu", threads=1, budget=Budget(1 << 30))
    yield opened
    opened.close()


@pytest.fixture
def model(request, device, tmp_path, monkeypatch):
    path, ids, _ = write_gguf(request.param, tmp_path)
    with open_gguf(path) as gguf:
        yield Model(gguf, ids, device, monkeypatch)


def other(value, factor=2):
    """A value of the same kind: numbers are multiplied, flags and the patterns of layers turned round."""
    if isinstance(value, bool | np.bool_):
        return not value
    if isinstance(value, str):
        return "none"
    if isinstance(value, int | float):
        return value * factor or 1
    return [other(one.item() if isinstance(one, np.generic) else one, factor) for one in value]


@pytest.mark.parametrize("model", RUNNING, indirect=True)
def test_another_value_of_a_key_that_is_read_gives_other_logits_or_is_refused(model):
    plain, unseen = model.logits(), set()
    for key in model.read & model.there:
        value = other(model.gguf.metadata[model.prefix + key], FAR.get(key, 2))
        found = model.logits({key: value})
        if found is not None and not np.abs(found - plain).max() >= LEAST_CHANGE * plain.std():
            unseen.add(key)
    assert unseen <= set(BLIND)


@pytest.mark.parametrize("model", RUNNING, indirect=True)
def test_a_key_that_is_written_is_read_or_stands_in_shapes(model):
    assert model.there - model.read <= set(IN_SHAPES)


def test_a_key_that_some_architecture_reads_stands_in_a_golden(device, monkeypatch, tmp_path):
    read, there = set(), set()
    for name in RUNNING:
        with open_gguf(write_gguf(name, tmp_path)[0]) as gguf:
            model = Model(gguf, (), device, monkeypatch)
            read, there = read | model.read, there | model.there
    assert read - there <= set(IN_NO_GOLDEN)
