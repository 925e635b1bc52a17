"""Each benchmark runs from any folder and writes the records it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ollama_zmq.formats.gguf import open_gguf
from tests.benchmarks.conftest import Run
from tests.models_tiny import write_tiny_llama
from tests.oracle.test_oracle import nmse, write_gguf

Records = Callable[..., list[dict[str, Any]]]
ABOUT = {"machine", "commit", "date", "version"}


def test_logits_are_the_same_bits_over_workers(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    given = ("--model", str(tiny_gguf), "--ids", "5,6,7,8,9", "--threads", "1")
    for arguments in (("--out", "alone.npy"), ("--out", "split.npy", "--workers", "2", "--chunk", "2")):
        done = run("logits.py", *given, *arguments)
        assert done.returncode == 0, done.stderr
    alone, split = np.load(tmp_path / "alone.npy"), np.load(tmp_path / "split.npy")
    assert alone.dtype == np.float32
    assert alone.shape[0] == 5
    assert alone.tobytes() == split.tobytes()


def test_logits_of_a_file_without_a_vocabulary_are_those_of_the_models_own_code(run: Run, tmp_path: Path) -> None:
    path, ids, wanted = write_gguf("qwen3", tmp_path)
    given = ("--model", str(path), "--ids", ",".join(map(str, ids)), "--threads", "1")
    done = run("logits.py", *given, "--out", "found.npy")
    assert done.returncode == 0, done.stderr
    assert nmse(np.load(tmp_path / "found.npy"), wanted) <= 1e-6


def test_the_output_matrix_makes_logits_of_embeddings(run: Run, tmp_path: Path) -> None:
    path, ids, wanted = write_gguf("qwen3", tmp_path)
    done = run("logits.py", "--model", str(path), "--ids", ",".join(map(str, ids)), "--out", "x.npy", "--embeddings")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "x.npy")
    with open_gguf(path) as gguf:
        output = np.frombuffer(gguf.data("output.weight"), np.float32).reshape(-1, found.shape[1])
        assert nmse(found @ output.T, wanted) <= 1e-6


def test_tokens_per_second_are_a_list_of_runs(records: Records, tiny_gguf: Path) -> None:
    sizes = ("--prompt", "32", "--decode", "4", "--repeats", "2")
    (run,) = records("bench_generate.py", "--model", str(tiny_gguf), "--workers", "1", "--threads", "1", *sizes)
    assert run.keys() >= ABOUT
    named = {name: run[name] for name in ("engine", "workers", "threads", "prompt", "decode", "model")}
    expected = {"engine": "ours", "workers": 1, "threads": 1, "prompt": 32, "decode": 4, "model": str(tiny_gguf)}
    assert named == expected
    assert min(run["prefill_tokens_per_s"], run["decode_tokens_per_s"]) > 0


def test_a_missing_peer_is_named_before_anything_runs(run: Run, tiny_gguf: Path) -> None:
    done = run("bench_generate.py", "--model", str(tiny_gguf), "--peer", "--peer-python", "/nowhere/python")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: /nowhere/python has no llama-cpp-python")


def test_latencies_cover_every_stage_and_every_layer(records: Records, tiny_gguf: Path) -> None:
    found = records("per_layer.py", "--model", str(tiny_gguf), "--workers", "2", "--threads", "1", "--decode", "8")
    stages = [record for record in found if record["kind"] == "stage"]
    layers = [record for record in found if record["kind"] == "layer"]
    assert [stage["part"] for stage in stages] == ["layers", "layers", "head"]
    assert all(stage["steps"] >= 8 for stage in stages)
    (token,) = [record for record in found if record["kind"] == "token"]
    assert token["p50_us"] > token["around_kernels_us"] == token["p50_us"] - sum(s["compute_p50_us"] for s in stages)
    assert [layer["layer"] for layer in layers] == [0, 1, 2, 3]
    assert all(0 < layer["p50_us"] <= layer["p95_us"] for layer in layers)


def test_a_plot_needs_matplotlib_and_says_so(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('hidden')")
    arguments = ("--model", str(tiny_gguf), "--plot", "out.png", "--decode", "4")
    done = run("per_layer.py", *arguments, python_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "Error: --plot needs matplotlib: pip install 'ollama-zmq[plot]'\n"


def test_clients_of_a_server_are_served_to_the_end(records: Records, tiny_gguf: Path) -> None:
    sizes = ("--prompt", "8", "--decode", "4", "--chat", "--turns", "2", "--threads", "1")
    (found,) = records("bench_serve.py", "--model", str(tiny_gguf), "--clients", "2", *sizes)
    assert found.keys() >= ABOUT
    assert (found["clients"], found["answers"], found["errors"]) == (2, 4, {})
    assert all(found[figure] > 0 for figure in ("tokens", "tokens_per_s", "ttft1_p50_ms", "rss_peak_bytes"))


def test_texts_are_the_same_with_and_without_guesses(records: Records, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "long.gguf", context_length=2048)
    sizes = ("--decode", "24", "--seeds", "1", "--texts", "code,prose", "--threads", "1")
    found = records("bench_speculation.py", "--model", str(model), *sizes)
    assert [(run["text"], run["temperature"]) for run in found] == [
        ("code", 0.0),
        ("code", 0.8),
        ("prose", 0.0),
        ("prose", 0.8),
    ]
    assert all(run["plain_tokens_per_s"] > 0 and run["drafted"] >= run["accepted"] for run in found)


def test_perplexity_is_measured_over_chunks(records: Records, tiny_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the other hello and " * 100)
    arguments = ("--model", str(tiny_gguf), "--text", str(text), "--ctx", "64", "--chunks", "2", "--threads", "1")
    (found,) = records("perplexity.py", *arguments)
    assert (found["chunks"], found["tokens"]) == (2, 62)
    assert found["perplexity"] > 1


def test_a_text_shorter_than_a_chunk_is_refused(run: Run, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the")
    done = run("perplexity.py", "--model", str(tiny_gguf), "--text", "text.txt", "--threads", "1")
    assert done.returncode == 1
    assert "a chunk needs 512" in done.stderr


def test_startup_is_measured_for_every_command(records: Records) -> None:
    found = records("startup.py", "--repeats", "1")
    assert [record["command"] for record in found] == ["python", "help", "serve", "rpc-server"]
    assert all(record["median_s"] > 0 for record in found)


def test_many_streams_are_compared_with_one(records: Records, tiny_gguf: Path) -> None:
    given = ("streams", "--model", str(tiny_gguf), "--threads", "1", "--decode", "8", "--repeats", "1")
    (row,) = records("bench_pipeline.py", *given)
    assert row.keys() >= ABOUT
    assert row["figure"] == "8 streams against one, this machine"
    assert row["ratio"] == row["many"] / row["one"] > 0
