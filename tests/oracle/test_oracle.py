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
from ollama_zmq.models.registry import known
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
NOT_YET: set[str] = set()  # recipes whose architecture is refused
NO_GOLDEN = {  # architecture -> why no recipe makes it
    "chatglm": "its code is not in transformers; the layer is glm4's without the norms after",
    "qwen2vl": "its text part is qwen2",
    "qwen3vl": "its text part is qwen3",
    "qwen3vlmoe": "its text part is qwen3moe",
}


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


def test_every_architecture_has_a_golden_or_a_reason():
    assert set(known()) - {architecture_of(name) for name in RECIPES} == set(NO_GOLDEN)
    assert set(RECIPES) - set(RUNNING) == NOT_YET
