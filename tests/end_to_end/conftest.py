"""Real processes: workers and a server that end with the test, whatever happens in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_zmq.cli.children import Children
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store
from tests.end_to_end.cluster import Cluster
from tests.models_tiny import CONTROL_TOKENS, write_tiny_llama


@pytest.fixture(scope="session")
def wide_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 8 layers of 2 MB, large enough for limits in MB; it (nearly) never ends a text by itself."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    write_tiny_llama(path, n_layers=8, hidden_size=256, head_dim=64, ffn_size=1024, context_length=1024)
    with open_gguf(path) as gguf:
        embedding = gguf.tensors["token_embd.weight"]
    with path.open("r+b") as file:  # end tokens get logit 0, which a low temperature makes unlikely
        file.seek(embedding.offset)
        file.write(bytes(len(CONTROL_TOKENS) * embedding.nbytes // embedding.shape[0]))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, wide_gguf: Path) -> Path:
    """A store with the model ``tiny``."""
    store = Store(tmp_path_factory.mktemp("models"))
    digest = store.blobs.add_file(wide_gguf).digest
    store.create("tiny", Recipe(files={"tiny.gguf": digest}))
    return store.root


@pytest.fixture
def children() -> Iterator[Children]:
    """Processes of this test alone."""
    with Children() as started:
        yield started


@pytest.fixture
def cluster(children: Children, models: Path) -> Cluster:
    """Two workers and a server over them, of this test alone."""
    return Cluster.start(children, models, n_workers=2)


@pytest.fixture(scope="module")
def quiet_cluster(models: Path) -> Iterator[Cluster]:
    """Three workers and a server over the first two, shared by tests that break nothing."""
    with Children() as started:
        yield Cluster.start(started, models, n_workers=3, n_used=2)
