"""Frames: what comes back is what was sent, and nothing that a peer can send does anything but raise."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import LocalProtocolError, RemoteProtocolError
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.frames import DTYPES, MAX_HEADER_BYTES, MAX_TENSORS, Envelope, decode, encode
from ollama_zmq.wire.messages import (
    Define,
    Failed,
    Hello,
    Ping,
    Put,
    Ran,
    Refused,
    WeightSource,
)
from tests.wire.samples import SAMPLES

PROGRAM = bytes(range(16))
PREAMBLE = b"OZ" + bytes([PROTOCOL])
names = st.text(max_size=20)
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


def ping_frames(entry: object = ("payload", "uint8", (3,)), body: bytes = b"abc") -> list[bytes]:
    return [PREAMBLE, header(tensors=[entry]), body]


@given(array=arrays(), nonce=st.integers(-(1 << 63), (1 << 63) - 1), epoch=counters, seq=counters)
def test_what_comes_back_is_what_was_sent(array, nonce, epoch, seq):
    envelope = Envelope(Ping(nonce), {"payload": array}, epoch, seq)
    assert decode([bytes(frame) for frame in encode(envelope)]) == envelope


@given(reason=names, package=names, protocol=st.integers(0, 300))
def test_texts_come_back(reason, package, protocol):
    envelope = Envelope(Refused(reason, package, protocol))
    assert decode(encode(envelope)) == envelope


@pytest.mark.parametrize("envelope", SAMPLES, ids=lambda e: type(e.message).__name__)
def test_every_message_comes_back(envelope):
    assert decode([bytes(frame) for frame in encode(envelope)]) == envelope


def test_tensor_memory_is_shared_on_both_sides():
    sent = np.arange(6, dtype=np.float32).reshape(2, 3)
    parts = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": sent}))
    received = decode(parts).tensors["output"]
    sent[0, 0] = 77
    assert received[0, 0] == 77


def test_received_tensors_are_read_only_and_may_be_unaligned():
    parts = encode(Envelope(Ran(PROGRAM, 1, 2, 3), {"output": np.ones(4, np.float32)}))
    shifted = memoryview(b"?" + bytes(parts[2]))[1:]
    received = decode([*parts[:2], shifted]).tensors["output"]
    assert not received.flags.aligned
    assert not received.flags.writeable
    np.testing.assert_array_equal(received, 1)


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
    ("frames", "words"),
    [
        ([], "0 frames"),
        ([PREAMBLE], "1 frames"),
        ([PREAMBLE, header(), *[b""] * (MAX_TENSORS + 1)], f"{MAX_TENSORS + 3} frames"),
        ([b"GET / HTTP/1.1", b""], "frame 0 is b'GET / HT'"),
        ([b"OZ", header()], "frame 0"),
        ([PREAMBLE + b"!", header()], "frame 0"),
        ([PREAMBLE, b""], "not valid MessagePack"),
        ([PREAMBLE, b"\xc1"], "not valid MessagePack"),
        ([PREAMBLE, header() + b"\x00"], "not valid MessagePack"),
        ([PREAMBLE, b"\x93\x01\x02\x03"], "unknown message 'None'"),
        ([PREAMBLE, b"\xdf\xff\xff\xff\xff"], "not valid MessagePack"),
        ([PREAMBLE, b"\xdd\xff\xff\xff\xff"], "not valid MessagePack"),
        ([PREAMBLE, b"\x91" * 5000], "not valid MessagePack"),
        ([PREAMBLE, bytes(MAX_HEADER_BYTES + 1)], f"header of {MAX_HEADER_BYTES + 1} bytes"),
        ([PREAMBLE, header(t="exec")], "unknown message 'exec'"),
        ([PREAMBLE, header(t=7)], "unknown message '7'"),
        ([PREAMBLE, header(t=["ping"])], "unknown message"),
        ([PREAMBLE, header(nonce="one")], "nonce"),
        ([PREAMBLE, header(epoch=-1)], "epoch"),
        ([PREAMBLE, header(seq=1 << 63)], "seq"),
        ([PREAMBLE, msgpack.packb({"t": "ping", "nonce": 1})], "epoch"),
        ([PREAMBLE, header()], "tensors [], expected ['payload']"),
        (ping_frames()[:2], "2 frames, expected 3"),
        ([*ping_frames(), b""], "4 frames, expected 3"),
        (ping_frames(("input", "uint8", (3,))), "tensors ['input']"),
        (ping_frames(("payload", "float64", (3,))), "dtype 'float64'"),
        (ping_frames(("payload", "object", (3,))), "dtype 'object'"),
        (ping_frames(("payload", "uint8", (4,))), "3 bytes, expected 4 for uint8 [4]"),
        (ping_frames(("payload", "float32", (1,))), "3 bytes, expected 4"),
        (ping_frames(("payload", "uint8", (-3,))), "tensors[0][2][0]"),
        (ping_frames(("payload", "uint8", (1 << 40,))), "tensors[0][2][0]"),
        (ping_frames(("payload", "uint8", ((1 << 31) - 1,) * 4)), "3 bytes, expected"),
        (ping_frames(("payload", "uint8", (0, *((1 << 31) - 1,) * 3)), b""), "out of range"),
        (ping_frames(("payload", "uint8", (1,) * 5)), "tensors[0][2]"),
        (ping_frames("payload"), "tensors[0]"),
    ],
)  # fmt: skip
def test_what_a_peer_must_not_send_is_named(frames, words):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frames)
    assert words in str(caught.value)


def test_unknown_fields_are_ignored_so_that_messages_can_grow():
    assert decode([PREAMBLE, header(t="bye", more=[1, 2])]).message == decode([PREAMBLE, header(t="bye")]).message


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, 255])
@pytest.mark.parametrize("message", [Hello("9.9.9", 3, "ab"), Refused("too old", "9.9.9", 3)])
def test_hello_and_refused_are_read_in_every_version(message, version):
    _, *rest = encode(Envelope(message, epoch=1))
    assert decode([b"OZ" + bytes([version]), *rest]) == Envelope(message, epoch=1)


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, 255])
@pytest.mark.parametrize("head", [header(t="bye"), b"anything at all", header(t="new_message")])
def test_anything_else_of_another_version_names_both(head, version):
    with pytest.raises(RemoteProtocolError, match=f"protocol {version}, this is protocol {PROTOCOL}") as caught:
        decode([b"OZ" + bytes([version]), head])
    assert caught.value.facts == {"theirs": version, "ours": PROTOCOL}


@given(st.data())
def test_truncated_messages_are_refused(data):
    envelope = data.draw(st.sampled_from(SAMPLES))
    parts = [bytes(part) for part in encode(envelope)]
    i = data.draw(st.integers(0, len(parts) - 1).filter(lambda i: parts[i]))
    parts[i] = parts[i][: data.draw(st.integers(0, len(parts[i]) - 1))]
    with pytest.raises(RemoteProtocolError):
        decode(parts)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_garbage_is_refused(parts):
    with pytest.raises(RemoteProtocolError):
        decode(parts)


scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5)
json_like = st.recursive(
    scalars | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
tags = st.sampled_from([type(envelope.message).__struct_config__.tag for envelope in SAMPLES])


@given(tag=tags, bodies=st.lists(st.binary(max_size=9), max_size=2), data=st.data())
def test_mangled_headers_decode_or_are_refused(tag, bodies, data):
    fields = data.draw(st.dictionaries(st.text(max_size=8), json_like, max_size=4))
    whole = {"epoch": 0, "seq": 0}
    for envelope in SAMPLES:
        whole |= msgpack.unpackb(bytes(encode(envelope)[1]))
    for name in data.draw(st.lists(st.sampled_from(sorted(whole)), max_size=3)):
        whole[name] = data.draw(json_like)
    try:
        envelope = decode([PREAMBLE, msgpack.packb({**whole, "t": tag, **fields}), *bodies])
    except RemoteProtocolError:
        return
    assert all(array.nbytes <= sum(map(len, bodies)) for array in envelope.tensors.values())


@given(st.sampled_from(SAMPLES), st.data())
def test_flipped_bytes_decode_or_are_refused(envelope, data):
    parts = [bytearray(part) for part in encode(envelope)]
    i = data.draw(st.integers(0, len(parts) - 1).filter(lambda i: len(parts[i])))
    at = data.draw(st.integers(0, len(parts[i]) - 1))
    parts[i][at] ^= data.draw(st.integers(1, 255))
    try:
        decode(parts)
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
