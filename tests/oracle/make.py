"""Writes goldens: what transformers computes for the tiny models of recipes.py. Needs torch and transformers.

python -m tests.oracle.make [NAME ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open

from tests.oracle.checkpoints import token_ids, write_checkpoint
from tests.oracle.recipes import RECIPES, SALTS, SIZES

GOLDENS = Path(__file__).parent / "goldens"


def make(name):
    """Write the golden of one recipe: config, shapes of tensors, logits float32 [48, V]."""
    class_name, own = RECIPES[name]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**(SIZES | own), attn_implementation="eager")
    with tempfile.TemporaryDirectory() as folder:
        model_class(config).save_pretrained(folder)
        said = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(folder, said, shapes, salt=SALTS.get(name, 0))
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(torch.tensor(token_ids(said["vocab_size"])[None].astype(np.int64))).logits[0].numpy()
    GOLDENS.mkdir(exist_ok=True)
    made_by = {"transformers": transformers.__version__, "torch": torch.__version__}
    np.savez_compressed(
        GOLDENS / f"{name}.npz",
        config=json.dumps(said),
        shapes=json.dumps(shapes),
        logits=logits.astype(np.float32),
        made_by=json.dumps(made_by),
    )
    print(f"{name}: {len(shapes)} tensors, logits {list(logits.shape)}, deviation {logits.std():.3g}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for wanted in sys.argv[1:] or RECIPES:
        make(wanted)
