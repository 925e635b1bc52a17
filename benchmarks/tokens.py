"""Which token ids does a model's tokenizer give? For comparisons with other programs, text by text.

    tokens.py --model F.gguf --strings IN.json --out OUT.json
    tokens.py --model F.gguf --strings IN.json --out OUT.json --add-special --parse-special

IN.json is a list of strings; OUT.json becomes a list of lists of ids, in the same order.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from common import parser, resolve_model, run_main, write_json

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.text.tokenizer import load_tokenizer


def main() -> None:
    made = parser(__doc__, model=False, cluster=False)
    made.add_argument("--model", required=True, metavar="F.gguf|NAME", help="a GGUF file, or a model of the store")
    made.add_argument("--strings", type=Path, required=True, metavar="IN.json")
    made.add_argument("--out", type=Path, required=True, metavar="OUT.json")
    made.add_argument("--add-special", action="store_true", help="put BOS and EOS where the model wants them")
    made.add_argument("--parse-special", action="store_true", help="read <|im_end|> and the like as tokens")
    given = made.parse_args()
    texts = read_texts(given.strings)
    path, _ = resolve_model(given.model)
    begun = time.perf_counter()
    with open_gguf(path) as file:
        tokenizer = load_tokenizer(file.metadata)
    loaded = time.perf_counter()
    special = {"add_special": given.add_special, "parse_special": given.parse_special}
    token_ids = [tokenizer.encode(text, **special) for text in texts]
    encoded = time.perf_counter()
    given.out.write_text(json.dumps(token_ids) + "\n", encoding="utf-8")
    counts = {"strings": len(texts), "tokens": sum(map(len, token_ids))}
    seconds = {"load_s": loaded - begun, "encode_s": encoded - loaded}
    write_json(given.json, [{"model": given.model, **special, **counts, **seconds}])


def read_texts(path: Path) -> list[str]:
    """The strings in a JSON file. Raises RequestError when it is no list of strings."""
    try:
        texts = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"--strings {path}: {error}") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"--strings {path}: not a list of strings")
    return texts


if __name__ == "__main__":
    sys.exit(run_main(main))
