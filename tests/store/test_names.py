import string
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ollama_zmq.errors import RequestError
from ollama_zmq.store.names import ModelName, name_of_path, parse_name

FIRST = string.ascii_letters + string.digits + "_"
hosts = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}(:[0-9]{1,5})?", fullmatch=True)
namespaces = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", fullmatch=True)
models = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", fullmatch=True)
names = st.builds(ModelName, hosts, namespaces, models, models)


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("smollm2", "registry.ollama.ai/library/smollm2:latest", "smollm2:latest"),
        ("smollm2:135m", "registry.ollama.ai/library/smollm2:135m", "smollm2:135m"),
        ("me/poet", "registry.ollama.ai/me/poet:latest", "me/poet:latest"),
        ("library/poet", "registry.ollama.ai/library/poet:latest", "poet:latest"),
        ("Registry.Ollama.AI/Library/Poet:X", "Registry.Ollama.AI/Library/Poet:X", "Poet:X"),
        ("hf.co/me/poet:q4", "hf.co/me/poet:q4", "hf.co/me/poet:q4"),
        ("localhost:5000/library/poet", "localhost:5000/library/poet:latest", "localhost:5000/library/poet:latest"),
        ("http://host:1/a/b:c", "host:1/a/b:c", "host:1/a/b:c"),
    ],
)
def test_missing_parts_are_the_defaults_and_defaults_are_not_shown(text, full, short):
    name = parse_name(text)
    assert (str(name), name.short) == (full, short)


@pytest.mark.parametrize(
    "text",
    ["", ":", "/", "a:", ":b", "a/", "/a", "a//b", "a/b/c/d", "..", "../a", "a/..", "a/../b", "a:..", ".a", "-a", "a b",
     "a\\b", "a\0", "a\n", "a:b/c:", "ů", "a" * 81, "a:" + "b" * 81, "n" * 81 + "/a", "h" * 351 + "/n/a", "n.s/a", "http://a"],
)  # fmt: skip
def test_what_no_model_may_be_called_is_refused(text):
    with pytest.raises(RequestError, match="invalid model name"):
        parse_name(text)


def test_the_longest_names_are_names():
    assert parse_name("h" * 350 + "/" + "n" * 80 + "/" + "m" * 80 + ":" + "t" * 80).model == "m" * 80


@given(names)
def test_a_full_or_short_name_parses_to_itself(name):
    assert parse_name(str(name)) == name
    assert parse_name(name.short).key == name.key


@given(names)
def test_a_name_is_found_again_from_its_path(name):
    assert name_of_path(name.path) == name


@given(st.text(st.sampled_from("aA0._-:/\\~ \0"), max_size=30))
def test_no_name_leads_out_of_the_store(text):
    try:
        name = parse_name(text)
    except RequestError:
        return
    root = Path("/store/manifests")
    assert (root / name.path).resolve().is_relative_to(root)
    assert len(name.path.parts) == 4


@given(names)
def test_case_does_not_distinguish_names(name):
    shouted = parse_name(str(name).upper())
    assume(shouted != name)
    assert shouted.key == name.key


@pytest.mark.parametrize("path", ["a/b/c", "a/b/c/d/e", "a/b/c/.d", "a/b/c/..", "a/b.c/d/e"])
def test_other_files_are_no_names(path):
    assert name_of_path(Path(path)) is None
