"""Laws of packing: equal records have equal bytes, every limit is kept, nothing but a record comes back."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq import packing


class Inner(msgspec.Struct, frozen=True, array_like=True):
    name: str
    sizes: tuple[int, ...]


class Outer(msgspec.Struct, frozen=True):
    inner: Inner
    facts: dict[str, int | float | str]
    data: bytes = b""


inners = st.builds(Inner, st.text(max_size=8), st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4).map(tuple))
values = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
outers = st.builds(Outer, inners, st.dictionaries(st.text(max_size=8), values, max_size=5), st.binary(max_size=9))


@given(outers)
def test_there_and_back(record):
    assert packing.unpack(packing.pack(record), Outer) == record


@given(outers)
def test_equal_records_have_equal_bytes(record):
    again = Outer(record.inner, dict(reversed(record.facts.items())), record.data)
    assert packing.pack(again) == packing.pack(record)


@given(outers, st.data())
def test_truncated_bytes_are_refused(record, data):
    packed = packing.pack(record)
    with pytest.raises(ValueError, match="not valid MessagePack"):
        packing.unpack(packed[: data.draw(st.integers(0, len(packed) - 1))], Outer)


@given(st.binary(max_size=60))
def test_rubbish_is_a_value_error(data):
    try:
        packing.unpack(data, Outer)
    except ValueError:
        return
    raise AssertionError("random bytes are no record")


def test_a_memoryview_will_do():
    record = Outer(Inner("a", (1,)), {})
    assert packing.unpack(memoryview(packing.pack(record)), Outer) == record


HEADER = {"text": b"\xdb", "bytes": b"\xc6", "array": b"\xdd", "map": b"\xdf"}


@pytest.mark.parametrize("what", HEADER)
def test_a_length_without_its_bytes_takes_no_memory(what):
    with pytest.raises(ValueError, match="not valid MessagePack"):
        packing.unpack(HEADER[what] + b"\xff\xff\xff\xff", Outer)


@pytest.mark.parametrize(
    "plain",
    [
        "x" * (packing.MAX_STR_LEN + 1),
        bytes(packing.MAX_BIN_LEN + 1),
        [0] * (packing.MAX_ARRAY_LEN + 1),
        {str(i): i for i in range(packing.MAX_MAP_LEN + 1)},
        msgpack.ExtType(5, b"x"),
        msgpack.Timestamp(1),
        {1: 2},
    ],
    ids=["text", "bytes", "array", "map", "extension", "timestamp", "key that is no text"],
)
def test_what_is_over_a_limit_is_refused(plain):
    with pytest.raises(ValueError, match="not valid MessagePack"):
        packing.unpack(msgpack.packb(plain), object)


def test_trailing_bytes_are_refused():
    with pytest.raises(ValueError, match="not valid MessagePack"):
        packing.unpack(packing.pack(Inner("a", ())) + b"\x00", Inner)


def test_endless_nesting_is_refused():
    with pytest.raises(ValueError, match="not valid MessagePack"):
        packing.unpack(b"\x91" * 100_000, Outer)


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        ({"inner": ["a", [1]]}, "facts"),
        ({"inner": ["a", ["1"]], "facts": {}}, "inner"),
        ({"inner": ["a", [1]], "facts": {"x": None}}, "facts"),
        ({"inner": ["a"], "facts": {}}, "inner"),
        ([], "object"),
    ],
)
def test_a_record_of_another_kind_is_refused_by_name(plain, named):
    with pytest.raises(ValueError, match=named):
        packing.unpack(msgpack.packb(plain), Outer)


def test_so_many_lists_and_maps_are_read_and_no_more():
    most = [[[]] * 1000 for _ in range(packing.MAX_CONTAINERS // 1001)]
    assert packing.unpack_plain(msgpack.packb(most)) == most
    for one_more in ([*most, [[]] * 1000], [*most, [{}] * 1000]):
        with pytest.raises(ValueError, match=f"more than {packing.MAX_CONTAINERS} lists and maps"):
            packing.unpack_plain(msgpack.packb(one_more))
