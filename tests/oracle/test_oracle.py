"""Every architecture computes what its makers' own code computes: through the converter, on both devices."""

import json
from pathlib import Path

import numpy as np
import pytest

from ollama_zmq.convert.convert import converted
from ollama_zmq.convert.registry import CONVERSIONS
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.reference_ops import KvCache
from ollama_zmq.devices.registry import open_device
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.registry import architecture, known
from ollama_zmq.ops.state import PAGE_SLOTS
from tests.models.running import running
from tests.oracle.checkpoints import token_ids, write_checkpoint
from tests.oracle.recipes import RECIPES, SALTS

GOLDENS = Path(__file__).parent / "goldens"
MAX_NMSE = 1e-9
MAX_NMSE_OF_HALF = 1e-4  # these weights are drawn so that small differences grow


def architecture_of(name):
    return CONVERSIONS[RECIPES[name][0]].architecture


RUNNING = [name for name in RECIPES if architecture_of(name) in known()]
NOT_YET = {name for name in RECIPES if name not in RUNNING}


def golden_of(name):
    """Config, shapes of tensors by name, and logits [48, V]."""
    with np.load(GOLDENS / f"{name}.npz") as golden:
        return json.loads(str(golden["config"])), json.loads(str(golden["shapes"])), golden["logits"]


def write_gguf(name, folder):
    """Write the tiny model *name* as GGUF, float32 throughout; return its path and what its makers' code computes."""
    config, shapes, logits = golden_of(name)
    path = folder / f"{name}.gguf"
    path.write_bytes(b"".join(converted(write_checkpoint(folder / name, config, shapes, salt=SALTS.get(name, 0)))))
    return path, token_ids(config["vocab_size"]), logits


def nmse(found, wanted):
    """The squared error over the squares of *wanted*."""
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.fixture(params=["reference", "cpu"])
def device(request):
    opened = open_device(request.param, budget=Budget(1 << 30))
    yield opened
    opened.close()


@pytest.fixture
def exact_cache(monkeypatch):
    """The reference device keeps keys and values as they are, in place of half precision."""

    def empty(cls, spec, kv_pages):
        slots = kv_pages * PAGE_SLOTS, spec.n_kv_heads
        return cls(spec.type, *(np.zeros((*slots, size), np.float32) for size in (spec.head_dim, spec.value_dim)))

    monkeypatch.setattr(KvCache, "empty", classmethod(empty))
    monkeypatch.setattr(KvCache, "rounded", lambda self, rows: rows)


@pytest.mark.parametrize("name", RUNNING)
def test_logits_are_those_of_the_models_own_code(name, exact_cache, tmp_path):
    path, ids, wanted = write_gguf(name, tmp_path)
    with running(open_device("reference", budget=Budget(1 << 30)), path) as stages:
        found = stages.run(ids)
    assert nmse(found, wanted) <= MAX_NMSE
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


@pytest.mark.parametrize("name", RUNNING)
def test_a_cache_of_half_precision_changes_little(name, device, tmp_path):
    path, ids, wanted = write_gguf(name, tmp_path)
    with running(device, path) as stages:
        assert nmse(stages.run(ids), wanted) <= MAX_NMSE_OF_HALF


def test_every_golden_belongs_to_a_recipe():
    assert {path.stem for path in GOLDENS.glob("*.npz")} == set(RECIPES)


class Recorded(Keys):
    """Notes which keys of the header an architecture reads."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.read = set()

    def _value(self, name, default):
        self.read.add(name)
        return super()._value(name, default)


BLIND = {  # keys whose change cannot be seen in these models, and why
    "context_length": "what the model was trained for; nothing computes with it but YaRN without an original context",
    "expert_count": "the shapes of the tensors say it",
    "rope.scaling.yarn_beta_fast": "of eight pairs or sixteen the corner is the same pair",
    "rope.scaling.yarn_beta_slow": "the same",
    "nextn_predict_layers": "changes the number of layers",
    "rope.scaling.yarn_log_multiplier": "beside an attn_factor",
}
SIZES = {  # keys whose change makes tensors misfit, which is refused: as good as seen
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "leading_dense_block_count",
    "interleave_moe_layer_step",
}


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "none"
    if isinstance(value, int | float | np.generic):
        return type(value)(value * 64 if value == 16 else value * 2 or 1)  # an original context beyond the load's
    return [changed(one) for one in value]


@pytest.mark.parametrize("name", RUNNING)
def test_logits_move_with_every_key_that_is_read(name, exact_cache, tmp_path, monkeypatch):
    path, ids, _ = write_gguf(name, tmp_path)
    with open_gguf(path) as file:
        prefix = file.architecture
        keys = Recorded(file.metadata, prefix)
        architecture(prefix)(keys)
        present = sorted(key for key in keys.read if keys.has(key) and key not in SIZES | set(BLIND))
        metadata = file.metadata
        as_it_is = logits_of(path, ids)
        for key in present:
            full = f"{prefix}.{key}"
            monkeypatch.setattr(
                "ollama_zmq.models.network.as_written",
                lambda gguf, full=full: gguf.with_header(
                    gguf.metadata.changed({full: changed(metadata[full])}), gguf.tensors
                ),
            )
            try:
                moved = nmse(logits_of(path, ids), as_it_is)
            except ModelFileError:
                continue  # an impossible value is refused
            assert moved >= 1e-8, f"{key} = {changed(metadata[full])} in place of {metadata[full]} moves nothing"


def logits_of(path, ids):
    with running(open_device("reference", budget=Budget(1 << 30)), path) as stages:
        return stages.run(ids)
