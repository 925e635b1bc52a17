"""benchmarks/tokens.py writes the tokenizer's ids, from any folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.text.tokenizer import load_tokenizer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tokens.py"
TEXTS = ["", "hello world", "<|im_end|>", "čau 🎉\n"]


def run(folder: Path, model: Path, strings: object, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "in.json").write_text(json.dumps(strings))
    files = ["--model", str(model), "--strings", "in.json", "--out", "out.json"]
    return subprocess.run([sys.executable, SCRIPT, *files, *flags], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("flags", [(), ("--add-special", "--parse-special")])
def test_the_ids_are_the_tokenizers(tmp_path: Path, tiny_gguf: Path, flags: tuple[str, ...]) -> None:
    run(tmp_path, tiny_gguf, TEXTS, *flags).check_returncode()
    with open_gguf(tiny_gguf) as file:
        tokenizer = load_tokenizer(file.metadata)
    special = bool(flags)
    expected = [tokenizer.encode(text, add_special=special, parse_special=special) for text in TEXTS]
    assert json.loads((tmp_path / "out.json").read_text()) == expected


def test_a_file_without_strings_is_one_line_of_error(tmp_path: Path, tiny_gguf: Path) -> None:
    done = run(tmp_path, tiny_gguf, {"not": "a list"})
    assert (done.returncode, done.stderr) == (1, "Error: --strings in.json: not a list of strings\n")
