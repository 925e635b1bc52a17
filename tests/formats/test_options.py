import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.options import (
    Options,
    format_parameters,
    merge_options,
    parse_parameter,
    typed_parameters,
)

json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers())


@pytest.mark.parametrize("stop", [["a"] * 257, ["a" * 4097]])
def test_stop_texts_have_a_largest_number_and_length(stop):
    with pytest.raises(RequestError, match=r'option "stop" has .*, at most'):
        merge_options(Options(), {}, {"stop": stop})
    with pytest.raises(RequestError, match=r'option "stop" has .*, at most'):
        typed_parameters(("stop", text) for text in stop)


@pytest.mark.parametrize("value", ["y" * 10_000, ["y" * 10_000] * 100, {"y" * 10_000: 1}, 10**4000])
def test_what_is_logged_of_unknown_options_does_not_grow_with_the_request(value):
    with structlog.testing.capture_logs() as logs:
        merge_options(Options(), {}, {f"{i}" + "x" * 10_000: value for i in range(999)})
    assert [entry["event"] for entry in logs] == ["option.ignored"] * 8 + ["options.ignored"]
    assert len(repr(logs)) < 3000
    assert logs[-1]["more"] == 991


def test_what_is_logged_of_removed_parameters_does_not_grow_with_the_modelfile():
    with structlog.testing.capture_logs() as logs:
        assert typed_parameters([("mirostat", "2" * 10_000)] * 999) == {}
    assert [entry["event"] for entry in logs] == ["option.ignored"] * 8 + ["options.ignored"]
    assert len(repr(logs)) < 3000


def test_a_request_wins_over_the_model_over_the_defaults():
    merged = merge_options(Options(num_ctx=8192), {"temperature": 0.5, "top_k": 5}, {"top_k": 7, "stop": ["a"]})
    assert merged == Options(num_ctx=8192, temperature=0.5, top_k=7, stop=("a",))


def test_nothing_changes_the_defaults():
    assert merge_options(Options(), {}, None) == Options()
    assert merge_options(Options(), {}, {"seed": None}) == Options()


def test_numbers_are_as_lenient_as_ollama():
    merged = merge_options(Options(), {}, {"top_k": 20.9, "temperature": 1, "num_ctx": 1})
    assert (merged.top_k, merged.temperature, merged.num_ctx) == (20, 1.0, 4)
    assert isinstance(merged.top_k, int)
    assert isinstance(merged.temperature, float)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_ctx", "many", 'option "num_ctx" must be of type integer'),
        ("num_ctx", True, 'option "num_ctx" must be of type integer'),
        ("top_k", 1e300, 'option "top_k" must be of type integer'),
        ("seed", float("nan"), 'option "seed" must be of type integer'),
        ("temperature", "hot", 'option "temperature" must be of type float32'),
        ("temperature", 1e300, 'option "temperature" must be of type float32'),
        ("use_mmap", 1, 'option "use_mmap" must be of type boolean'),
        ("stop", "x", 'option "stop" must be of type array'),
        ("stop", [1], 'option "stop" must be of an array of strings'),
        ("rpc_servers", ["a:1"], 'option "rpc_servers" must be of type string'),
    ],
)
def test_a_wrong_type_is_named_as_ollama_does(name, value, message):
    with pytest.raises(RequestError) as caught:
        merge_options(Options(), {}, {name: value})
    assert str(caught.value) == message


@given(st.dictionaries(st.sampled_from(Options.__struct_fields__) | st.text(max_size=5), json_values, max_size=4))
def test_any_json_is_merged_or_refused(request_options):
    try:
        assert isinstance(merge_options(Options(), {}, request_options), Options)
    except RequestError:
        return


def test_unknown_and_removed_options_are_logged_and_ignored():
    with structlog.testing.capture_logs() as logs:
        assert merge_options(Options(), {"mirostat": 1}, {"tfs_z": 1.0}) == Options()
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("option.ignored", "mirostat"),
        ("option.ignored", "tfs_z"),
    ]


def test_parameters_are_read_from_text():
    pairs = [("stop", "a"), ("seed", "7"), ("stop", "b"), ("top_p", "0.5"), ("use_mmap", "T"), ("rpc_servers", "h:1")]
    assert typed_parameters(pairs) == {
        "stop": ["a", "b"],
        "seed": 7,
        "top_p": 0.5,
        "use_mmap": True,
        "rpc_servers": "h:1",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperatur", "1", "unknown parameter 'temperatur'"),
        ("tfs_z", "1", "unknown parameter 'tfs_z'"),
        ("temperature", "hot", "invalid float value [hot] for parameter 'temperature'"),
        ("temperature", "1e99", "invalid float value [1e99] for parameter 'temperature'"),
        ("temperature", "nan", "invalid float value [nan] for parameter 'temperature'"),
        ("top_k", "1.5", "invalid int value [1.5] for parameter 'top_k'"),
        ("top_k", "1_0", "invalid int value [1_0] for parameter 'top_k'"),
        ("top_k", str(2**63), f"invalid int value [{2**63}] for parameter 'top_k'"),
        ("use_mmap", "yes", "invalid bool value [yes] for parameter 'use_mmap'"),
    ],
)
def test_a_parameter_that_is_none_is_named(name, text, message):
    with pytest.raises(RequestError) as caught:
        parse_parameter(name, text)
    assert str(caught.value) == message


def test_removed_parameters_are_ignored_with_a_warning():
    with structlog.testing.capture_logs() as logs:
        assert typed_parameters([("mirostat", "2")]) == {}
    assert [entry["log_level"] for entry in logs] == ["warning"]


def test_parameters_are_shown_in_columns():
    assert format_parameters({"temperature": 0.7, "stop": ["<s>", 'a"b'], "use_mmap": True, "num_ctx": 4096}) == (
        "num_ctx                        4096\n"
        'stop                           "<s>"\n'
        'stop                           "a\\"b"\n'
        "temperature                    0.7\n"
        "use_mmap                       true"
    )
