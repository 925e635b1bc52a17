"""Makes ``smollm2_logits.npz``: what llama.cpp computes for three prompts, teacher-forced.

    python make_smollm2_logits.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2_logits.npz

Needs llama-cpp-python (0.3.36 made the file beside this script). For prompt p of T tokens:

    ids_p      int32 [T]       its tokens, without a first special token
    top_ids_p  int32 [T, 5]    the likeliest tokens after each position, best first
    top_p      float32 [T, 5]  their logits
    logits_p   float16 [V]     all logits after the last position
"""

import sys

import llama_cpp
import numpy as np

PROMPTS = (
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Spain is",
    "<|im_start|>user\nWrite one sentence about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
)
TOP = 5


def main(model_path: str, out_path: str) -> None:
    model = llama_cpp.Llama(model_path, n_ctx=256, n_threads=2, logits_all=True, verbose=False)
    arrays = {}
    for p, prompt in enumerate(PROMPTS):
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        model.reset()
        model.eval(ids)
        logits = np.array(model.scores[: len(ids)], np.float32)
        top = np.argsort(-logits, axis=1)[:, :TOP]
        arrays |= {
            f"ids_{p}": np.array(ids, np.int32),
            f"top_ids_{p}": top.astype(np.int32),
            f"top_{p}": np.take_along_axis(logits, top, axis=1),
            f"logits_{p}": logits[-1].astype(np.float16),
        }
        print(len(ids), repr(model.detokenize(top[-1:, 0].tolist())))
    np.savez_compressed(out_path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
