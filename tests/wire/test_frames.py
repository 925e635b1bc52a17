"""Frames: what comes back is what was sent, and nothing that a peer can send does anything but raise."""

from __future__ import annotations

import tracemalloc

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import LocalProtocolError, RemoteProtocolError
from ollama_zmq.ops.program import NAME
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire import names
from ollama_zmq.wire.frames import DTYPES, HEADER_AT, INLINE_NBYTES, MAX_HEADER_BYTES, TAGS, Envelope, decode, encode
from ollama_zmq.wire.messages import (
    Define,
    Defined,
    Failed,
    Hello,
    Ping,
    Put,
    Ran,
    Refused,
    Run,
    WeightSource,
)
from tests.wire.samples import SAMPLES

PROGRAM = bytes(range(16))
PREAMBLE = b"OZ" + bytes([PROTOCOL])
texts = st.text(max_size=20)
counters = st.integers(0, (1 << 63) - 1)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from(sorted(DTYPES))))
    shape = draw(shapes)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=nbytes, max_size=nbytes)), dtype).reshape(shape)


def header(**fields: object) -> bytes:
    packed: bytes = msgpack.packb({"t": "ping", "epoch": 0, "seq": 0, "nonce": 1, **fields})
    return packed


def frame(head: bytes, *bodies: bytes, version: int = PROTOCOL) -> bytes:
    return b"".join((b"OZ", bytes([version]), len(head).to_bytes(4, "little"), head, *bodies))


def header_in(data: bytes) -> bytes:
    """The header of a frame."""
    return data[HEADER_AT : HEADER_AT + int.from_bytes(data[3:HEADER_AT], "little")]


def ping(entry: object = ("payload", "uint8", (3,)), body: bytes = b"abc") -> bytes:
    return frame(header(tensors=[entry]), body)


@given(array=arrays(), nonce=st.integers(-(1 << 63), (1 << 63) - 1), epoch=counters, seq=counters)
def test_what_comes_back_is_what_was_sent(array, nonce, epoch, seq):
    envelope = Envelope(Ping(nonce), {"payload": array}, epoch, seq)
    assert decode(encode(envelope)) == envelope


@given(reason=texts, package=texts, protocol=st.integers(0, 300))
def test_texts_come_back(reason, package, protocol):
    envelope = Envelope(Refused(reason, package, protocol))
    assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_every_message_comes_back(envelope):
    assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize("N", [6, INLINE_NBYTES])
def test_frames_keep_what_could_be_written_to(N):
    """A device writes its next output over this one while libzmq has the frame."""
    sent = np.arange(N, dtype=np.float32)
    data = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": sent}))
    sent[:] = 77
    np.testing.assert_array_equal(decode(data).tensors["output"], np.arange(N))


def test_received_tensors_are_read_only_views_and_may_be_unaligned():
    (data,) = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": np.ones(4, np.float32)}))
    outputs = [decode([memoryview(bytearray(i) + data)[i:]]).tensors["output"] for i in range(4)]
    assert [output.flags.aligned for output in outputs].count(False) == 3
    assert not any(output.flags.writeable or output.flags.owndata for output in outputs)
    np.testing.assert_array_equal(outputs, 1)


def test_a_received_tensor_without_a_value_is_read_only_too():
    data = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": np.ones((0, 4), np.float32)}))
    assert not decode(data).tensors["output"].flags.writeable


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_tensor_has_a_frame_of_its_own_when_it_is_large(surplus):
    sent = np.arange(INLINE_NBYTES + surplus).astype(np.uint8)
    first, *others = encode(Envelope(Ping(1), {"payload": sent}))
    assert [len(other) for other in others] == [len(sent)] * surplus
    np.testing.assert_array_equal(decode([first, *others]).tensors["payload"], sent)


def test_a_received_large_tensor_is_passed_on_without_a_copy():
    received = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": np.zeros(INLINE_NBYTES, np.float32)}))
    hidden = decode(received).tensors["output"]
    passed_on = encode(Envelope(Run(PROGRAM, 1, (1,), (0,), ((0,),), (0,)), {"input": hidden}))[1]
    assert passed_on.obj is hidden
    assert np.shares_memory(hidden, np.frombuffer(received[1], np.uint8))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "tensors [], expected ['payload']"),
        ({"payload": np.zeros(1, np.uint8), "more": np.zeros(1, np.uint8)}, "expected ['payload']"),
        ({"payload": np.zeros(2, np.float64)}, "dtype float64"),
        ({"payload": np.zeros((4, 4), np.uint8)[:, ::2]}, "not C-contiguous"),
        ({"payload": np.zeros((1,) * 5, np.uint8)}, "5 dimensions"),
    ],
)
def test_what_must_not_be_sent_is_refused_before_it_is(tensors, words):
    with pytest.raises(LocalProtocolError, match="ping") as caught:
        encode(Envelope(Ping(1), tensors))
    assert words in str(caught.value)


def test_a_header_that_no_peer_would_read_is_not_sent():
    sources = tuple(WeightSource("w" * 100, "b" * 70, i, i) for i in range(15_000))
    with pytest.raises(LocalProtocolError, match="header of"):
        encode(Envelope(Define(PROGRAM, b"", sources, 0, 1, 1)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "frame of 0 bytes"),
        (PREAMBLE, "frame of 3 bytes"),
        (b"GET / HTTP/1.1", "begins with b'GET / H'"),
        (b"\0Z" + frame(header())[2:], "begins with"),
        (frame(header())[:-1], "in a frame of"),
        (PREAMBLE + b"\xff\xff\xff\xff", "header: 4294967295 bytes in a frame of 7"),
        (frame(b""), "truncated"),
        (frame(b"\xc1"), "malformed"),
        (frame(header() + b"\x00"), "trailing"),
        (frame(b"\x93\x01\x02\x03"), "Expected `object`, got `array`"),
        (frame(b"\xdf\xff\xff\xff\xff"), "truncated"),
        (frame(b"\xdd\xff\xff\xff\xff"), "header: "),
        (frame(b"\x91" * 5000), "header: "),
        (frame(bytes(MAX_HEADER_BYTES + 1)), f"header: {MAX_HEADER_BYTES + 1} bytes"),
        (frame(header(t="exec")), "Invalid value 'exec'"),
        (frame(header(t=7)), "$.t"),
        (frame(header(t=["ping"])), "$.t"),
        (frame(header(nonce="one")), "$.nonce"),
        (frame(header(nonce=True)), "$.nonce"),
        (frame(header(epoch=-1)), "$.epoch"),
        (frame(header(seq=1 << 63)), "$.seq"),
        (frame(msgpack.packb({"t": "ping", "nonce": 1})), "epoch"),
        (frame(header()), "tensors [], expected ['payload']"),
        (ping()[:-1], "2 bytes, expected 3 for uint8 [3]"),
        (ping() + b"more", "4 bytes and 0 frames behind its tensors"),
        (ping(("input", "uint8", (3,))), "tensors ['input']"),
        (ping(("payload", "float64", (3,))), "dtype 'float64'"),
        (ping(("payload", "object", (3,))), "dtype 'object'"),
        (ping(("payload", "uint8", (4,))), "3 bytes, expected 4 for uint8 [4]"),
        (ping(("payload", "float32", (1,))), "3 bytes, expected 4"),
        (ping(("payload", "uint8", (-3,))), "tensors[0][2][0]"),
        (ping(("payload", "uint8", (1 << 40,))), "tensors[0][2][0]"),
        (ping(("payload", "uint8", ((1 << 31) - 1,) * 4)), "bytes, at most 1048576"),
        (ping(("payload", "uint8", ((1 << 20) + 1,))), "1048577 bytes, at most 1048576"),
        (frame(header(more=bytes(256 << 10))), "bytes of 'ping', at most 262144"),
        (ping(("payload", "uint8", (0, *((1 << 31) - 1,) * 3)), b""), "out of range"),
        (ping(("payload", "uint8", (1,) * 5)), "tensors[0][2]"),
        (ping("payload"), "tensors[0]"),
    ],
)  # fmt: skip
def test_what_a_peer_must_not_send_is_named(data, words):
    with pytest.raises(RemoteProtocolError) as caught:
        decode([data])
    assert words in str(caught.value)


LARGE = frame(header(tensors=[("payload", "uint8", (INLINE_NBYTES + 1,))]))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "frame of 0 bytes"),
        ([ping(), b""], "0 bytes and 1 frames behind its tensors"),
        ([ping()[:-3], b"abc"], "0 bytes, expected 3"),
        ([LARGE], f"0 bytes, expected {INLINE_NBYTES + 1}"),
        ([LARGE + bytes(INLINE_NBYTES + 1)], f"0 bytes, expected {INLINE_NBYTES + 1}"),
        ([LARGE, bytes(INLINE_NBYTES)], f"{INLINE_NBYTES} bytes, expected {INLINE_NBYTES + 1}"),
        ([LARGE, bytes(INLINE_NBYTES + 2)], f"{INLINE_NBYTES + 2} bytes, expected {INLINE_NBYTES + 1}"),
        ([LARGE + b"a", bytes(INLINE_NBYTES + 1)], "1 bytes and 0 frames behind its tensors"),
        ([LARGE, bytes(INLINE_NBYTES + 1), b""], "0 bytes and 1 frames behind its tensors"),
    ],
)
def test_frames_that_do_not_belong_to_the_tensors_are_named(frames, words):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    assert words in str(caught.value)


def test_a_message_of_too_many_frames_is_refused_unread():
    with pytest.raises(RemoteProtocolError, match="more than 9 frames in a message"):
        decode([ping()] * 10)


NAMES = [
    ("put", "weight", "blk.0/attn", "$.weight"),
    ("put", "weight", "", "$.weight"),
    ("put", "weight", "w" * 129, "$.weight"),
    ("put", "weight", "w\n", "$.weight"),
    ("put", "program", bytes(17), "$.program"),
    ("put", "digest", bytes(33), "$.digest"),
    ("define", "sources", [{"name": "w", "blob": "../../etc/passwd", "offset": 0, "nbytes": 1}], "blob"),
    ("define", "sources", [{"name": "\x1b[2J", "blob": "", "offset": 0, "nbytes": 1}], "name"),
    ("hello", "broker", "a b", "$.broker"),
    ("hello", "broker", "", "$.broker"),
    ("welcome", "devices", [{"kind": "CPU!", "name": ""}], "kind"),
    ("welcome", "host", "h" * 4097, "$.host"),
    ("failed", "kind", "os.system", "$.kind"),
    ("failed", "detail", "d" * 4097, "$.detail"),
    ("refused", "reason", "r" * 4097, "$.reason"),
    ("defined", "missing", ["a", "\u202e"], "$.missing"),
]


@pytest.mark.parametrize(("tag", "field", "value", "words"), NAMES)
def test_names_have_an_alphabet_and_texts_a_length(tag, field, value, words):
    (data,) = encode(next(envelope for envelope in SAMPLES if TAGS[type(envelope.message)] == tag))
    head = header_in(data)
    body = data[HEADER_AT + len(head) :]
    assert decode([frame(head, body)])
    with pytest.raises(RemoteProtocolError) as caught:
        decode([frame(msgpack.packb(msgpack.unpackb(head) | {field: value}), body)])
    assert words in str(caught.value)


def test_a_weight_that_a_program_may_have_has_a_name_that_a_message_may_have():
    (pattern,) = [meta.pattern for meta in names.WeightName.__metadata__]
    assert pattern == rf"\A{NAME.pattern}\Z"


def test_a_definition_its_answer_and_a_step_of_many_pages_may_have_a_large_header_and_nothing_else():
    sources = tuple(WeightSource(f"blk.{i}.w", "", i, i) for i in range(10_000))
    pages = tuple(tuple(range(70_000, 71_600)) for _ in range(64))
    step = Run(PROGRAM, 1, (1,) * 64, (0,) * 64, pages, (0,))
    definition = Envelope(Define(PROGRAM, b"", sources, 0, 1, 1))
    answer = Envelope(Defined(PROGRAM, tuple("w" * 128 for _ in range(10_000))))
    for large in (definition, answer, Envelope(step, {"input": np.zeros(64, np.int32)})):
        assert decode(encode(large)) == large
    with pytest.raises(LocalProtocolError, match="failed: header of"):
        encode(Envelope(Failed(PROGRAM, 1, "OpError", "w" * 300_000)))


LENGTHS = {"text": b"\xdb", "bytes": b"\xc6", "array": b"\xdd", "map": b"\xdf"}
FIELDS = {name: packed for (data,) in map(encode, SAMPLES) for name, packed in msgpack.unpackb(header_in(data)).items()}


@pytest.mark.parametrize("what", LENGTHS)
@pytest.mark.parametrize("tag", TAGS.values())
def test_a_length_without_its_bytes_takes_no_memory(tag, what):
    """Whatever a field claims to hold, what is taken is a small multiple of what came."""
    known = b"".join(msgpack.packb(name) + msgpack.packb(value) for name, value in (FIELDS | {"t": tag}).items())
    for name in (*FIELDS, "unknown"):
        head = bytes([0xDE, 0, len(FIELDS) + 1]) + known + msgpack.packb(name) + LENGTHS[what] + b"\x7f\xff\xff\xff"
        tracemalloc.start()
        with pytest.raises(RemoteProtocolError):
            decode([frame(head)])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 200_000


def test_unknown_fields_are_ignored_so_that_messages_can_grow():
    assert decode([frame(header(t="bye", more=[1, 2]))]) == decode([frame(header(t="bye"))])


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, 255])
@pytest.mark.parametrize("message", [Hello("9.9.9", 3, "ab"), Refused("too old", "9.9.9", 3)])
def test_hello_and_refused_are_read_in_every_version(message, version):
    (data,) = encode(Envelope(message, epoch=1))
    assert decode([frame(header_in(data), version=version)]) == Envelope(message, epoch=1)


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, 255])
@pytest.mark.parametrize("head", [header(t="bye"), b"anything at all", header(t="new_message")])
def test_anything_else_of_another_version_names_both(head, version):
    with pytest.raises(RemoteProtocolError, match=f"protocol {version}, this is protocol {PROTOCOL}") as caught:
        decode([frame(head, version=version)])
    assert caught.value.facts == {"theirs": version, "ours": PROTOCOL}


@given(st.data())
def test_truncated_messages_are_refused(data):
    envelope = data.draw(st.sampled_from(SAMPLES))
    (whole,) = encode(envelope)
    with pytest.raises(RemoteProtocolError):
        decode([whole[: data.draw(st.integers(0, len(whole) - 1))]])


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_garbage_is_refused(head, body):
    for data in (head, frame(head, body), PREAMBLE + head):
        with pytest.raises(RemoteProtocolError):
            decode([data])


scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5)
json_like = st.recursive(
    scalars | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
tags = st.sampled_from(sorted(TAGS.values()))


@given(tag=tags, body=st.binary(max_size=18), data=st.data())
def test_mangled_headers_decode_or_are_refused(tag, body, data):
    fields = data.draw(st.dictionaries(st.text(max_size=8), json_like, max_size=4))
    whole = dict(FIELDS)
    for name in data.draw(st.lists(st.sampled_from(sorted(whole)), max_size=3)):
        whole[name] = data.draw(json_like)
    try:
        envelope = decode([frame(msgpack.packb({**whole, "t": tag, **fields}), body)])
    except RemoteProtocolError:
        return
    assert sum(array.nbytes for array in envelope.tensors.values()) <= len(body)


@given(st.sampled_from(SAMPLES), st.data())
def test_flipped_bytes_decode_or_are_refused(envelope, data):
    whole = bytearray(encode(envelope)[0])
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        decode([whole])
    except RemoteProtocolError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


def test_envelopes_differ_by_every_part():
    one = Envelope(Put(PROGRAM, "w", 0), {"chunk": np.ones(2, np.uint8)}, 1, 2)
    assert one == Envelope(Put(PROGRAM, "w", 0), {"chunk": np.ones(2, np.uint8)}, 1, 2)
    assert one != Envelope(Put(PROGRAM, "w", 1), one.tensors, 1, 2)
    assert one != Envelope(one.message, {"chunk": np.zeros(2, np.uint8)}, 1, 2)
    assert one != Envelope(one.message, one.tensors, 2, 2)
    assert one != Envelope(one.message, one.tensors, 1, 3)
    assert one != Failed(PROGRAM, 0, "", "")


@pytest.mark.parametrize("kind", [names.WeightName, names.BlobName, names.BrokerId, names.WorkerId, names.ErrorKind])
def test_no_name_ends_in_a_line_end(kind):
    right = "sha256-" + 64 * "0" if kind is names.BlobName else "ab"
    assert msgspec.convert(right, kind) == right
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(f"{right}\n", kind)
