"""``ollama create`` uploads what a Modelfile names and makes the model it describes."""

import pytest

from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_writer import NewTensor, gguf_chunks
from tests.oracle.checkpoints import write_checkpoint
from tests.oracle.test_oracle import golden_of


@pytest.fixture
def folder(tmp_path, store):
    """A folder with a GGUF file in it."""
    path = tmp_path / "work"
    path.mkdir()
    (path / "bare").mkdir()
    (path / "other.gguf").write_bytes(store.get("tiny").gguf_path.read_bytes() + b"\0" * 32)
    return path


def modelfile(folder, text):
    path = folder / "Modelfile"
    path.write_text(text)
    return str(path)


def test_a_model_from_a_file_beside_the_modelfile(ollama, server, store, folder):
    text = "FROM ./other.gguf\nPARAMETER temperature 0.5\nPARAMETER stop a\nPARAMETER stop b\nSYSTEM Be kind.\n"
    text += 'TEMPLATE """{{ .Prompt }}"""\nMESSAGE user Hi\nLICENSE MIT\n'
    printed = ollama("create", "mine", "-f", modelfile(folder, text))
    assert (printed.code, printed.out, printed.err.splitlines()[-1]) == (0, "", "success")
    mine = store.get("mine")
    assert mine.gguf_path.read_bytes() == (folder / "other.gguf").read_bytes()
    assert (mine.system, mine.template, mine.license) == ("Be kind.", "{{ .Prompt }}", ["MIT"])
    assert mine.parameters == {"stop": ["a", "b"], "temperature": 0.5}


def test_a_model_from_a_folder_of_safetensors(ollama, server, store, folder):
    config, shapes, _ = golden_of("llama")
    write_checkpoint(folder / "mine", config, shapes, "BF16")
    printed = ollama("create", "mine", "-f", modelfile(folder, "FROM ./mine"))
    assert (printed.code, printed.err.splitlines()[-1]) == (0, "success")
    assert "converting model" in printed.err
    assert (store.get("mine").config.model_family, store.get("mine").config.file_type) == ("llama", "BF16")


def test_a_part_of_a_model_stands_for_all_of_them(ollama, server, store, folder):
    whole = store.get("tiny").gguf_path
    with open_gguf(whole) as file:
        metadata, names = {key: file.metadata[key] for key in file.metadata}, list(file.tensors)
        for number, own in enumerate((names[:3], names[3:])):
            said = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
            tensors = [
                NewTensor(name, info.type, info.shape, lambda name=name: [bytes(file.data(name))])
                for name in own
                for info in [file.tensors[name]]
            ]
            path = folder / f"tiny-0000{number + 1}-of-00002.gguf"
            path.write_bytes(b"".join(gguf_chunks((metadata if number == 0 else {}) | said, tensors)))
    printed = ollama("create", "mine", "-f", modelfile(folder, "FROM ./tiny-00001-of-00002.gguf"))
    assert (printed.code, printed.err.splitlines()[-1]) == (0, "success")
    with open_gguf(store.get("mine").gguf_path) as mine, open_gguf(whole) as file:
        assert set(mine.tensors) == set(file.tensors)
        assert all(bytes(mine.data(name)) == bytes(file.data(name)) for name in names)


def test_a_folder_that_cannot_be_converted_leaves_nothing(ollama, server, store, folder):
    config, shapes, _ = golden_of("llama")
    write_checkpoint(folder / "mine", config | {"architectures": ["NoModel"]}, shapes)
    before = {path.name for path in store.blobs.folder.iterdir()}
    printed = ollama("create", "mine", "-f", modelfile(folder, "FROM ./mine"))
    assert (printed.code, printed.err.splitlines()[-1][:58]) == (
        1,
        "Error: config.json: architectures names 'NoModel'; known a",
    )
    sent = {path.name for path in store.blobs.folder.iterdir()} - before
    assert all(not store.blobs.read(name.replace("-", ":")).startswith(b"GGUF") for name in sent)
    assert len(store.list()) == 2


def test_a_model_from_a_model(ollama, server, store, folder):
    assert ollama("create", "mine", "-f", modelfile(folder, "FROM tiny\nSYSTEM Be kind.")).code == 0
    assert store.get("mine").gguf_path == store.get("tiny").gguf_path


def test_a_file_that_the_server_has_is_not_sent_again(ollama, server, store, folder, monkeypatch):
    path = modelfile(folder, "FROM ./other.gguf")
    assert ollama("create", "mine", "-f", path).code == 0
    monkeypatch.setattr("ollama_zmq.client.Client.upload", lambda *_: pytest.fail("it was sent again"))
    assert ollama("create", "again", "-f", path).code == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("SYSTEM x", "no FROM line"),
        ("FROM ./missing.gguf", "FROM ./missing.gguf: no such file: "),
        ("FROM ./bare", "FROM ./bare: neither *.safetensors nor *.gguf in folder "),
        ("FROM nope", "model 'nope' not found"),
        ("FROM tiny\nPARAMETER wings 2", "unknown parameter 'wings'"),
        ("FROM tiny\nADAPTER a.gguf", "ADAPTER a.gguf: no such file: "),
        ("FROM tiny\nDRAFT other.gguf", "DRAFT other.gguf: draft models are not supported yet; leave the line out"),
        ("FROM tiny\nFLY high", "(line 2): command must be one of "),
        ("FROM ./Modelfile", "supplied file was not in GGUF format: Modelfile"),
    ],
)
def test_what_is_wrong_with_a_modelfile_is_one_line(ollama, server, store, folder, text, error):
    printed = ollama("create", "mine", "-f", modelfile(folder, text))
    assert (printed.code, printed.err.splitlines()[-1][: len(error) + 7]) == (1, f"Error: {error}")
    assert len(store.list()) == 2


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--draft-quantize", "q8_0"], "--draft-quantize q8_0: draft models are not supported yet; leave it out"),
        (["--experimental"], "--experimental: models are made from GGUF files only; leave it out"),
    ],
)
def test_flags_of_ollama_that_are_not_built_are_refused_with_a_sentence(ollama, server, store, folder, flags, error):
    printed = ollama("create", "mine", "-f", modelfile(folder, "FROM tiny"), *flags)
    assert (printed.code, printed.err) == (1, f"Error: {error}\n")
    assert len(store.list()) == 2


def test_a_missing_modelfile_is_named(ollama, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ollama("create", "mine").err == "Error: specified Modelfile wasn't found: Modelfile; name one with -f\n"
