"""Laws of programs: what a Builder records verifies, what is wrong is refused by name, bytes and ids do not change."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_zmq.errors import OpError, ShapeError, UnsupportedOp
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.program import (
    MAX_ANGLES,
    MAX_CALLS,
    MAX_NBYTES,
    MAX_SIZE,
    MAX_VALUES,
    Call,
    Program,
    TensorSpec,
    WeightSpec,
    check_inputs,
    program_id,
    row_floats,
    verify,
)
from ollama_zmq.ops.registry import OPS, op_digests
from ollama_zmq.ops.spec import Attr, Output
from ollama_zmq.ops.state import PagedKvSpec, SlotSpec

HEADS = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}


def small_program(name="layer"):
    """One attention layer of D=8: every kind of value there is."""
    ops = Builder(name)
    h = ops.input("hidden_state", ("T", 8))
    norm, wq, wk = (ops.weight(WeightSpec(n, 0, s)) for n, s in (("norm", (8,)), ("wq", (8, 8)), ("wk", (4, 8))))
    cache = ops.cache("kv.0", n_kv_heads=1, head_dim=4)
    x = ops.rms_norm(h, norm, eps=1e-5)
    q = ops.rope(ops.linear(x, wq), ops.positions, None, n_heads=2, head_dim=4, rotary_dim=4, theta=1e4)
    k = ops.linear(x, wk)
    ops.store_kv(k, k, cache, n_kv_heads=1, head_dim=4)
    out = ops.add(h, ops.attention(q, cache, **HEADS, scale=0.5))
    return ops.program("hidden_state", ops.take_rows(out, ops.rows))


PROGRAM = small_program()


def changed(**fields):
    return msgspec.structs.replace(PROGRAM, **fields)


def with_call(i, **fields):
    """The small program with call *i* changed. 0 norm, 1 wq, 2 rope, 3 wk, 4 store, 5 attention, 6 add, 7 rows."""
    calls = list(PROGRAM.calls)
    calls[i] = msgspec.structs.replace(calls[i], **fields)
    return changed(calls=tuple(calls))


def with_args(i, **args):
    return with_call(i, args=PROGRAM.calls[i].args | args)


def with_attrs(i, **attrs):
    return with_call(i, attrs=PROGRAM.calls[i].attrs | attrs)


def with_input(dtype, shape):
    return changed(inputs=(TensorSpec("hidden_state", dtype, shape),))


def test_what_a_builder_records_verifies():
    verified = verify(PROGRAM)
    assert verified.shapes["v0"] == ("T", 8)
    assert verified.shapes[verified.output.name] == ("R", 8)


def test_bytes_and_back():
    assert Program.from_bytes(PROGRAM.to_bytes()) == PROGRAM


def test_golden_id():
    """If this changes, programs mean something else on the wire: change PROTOCOL."""
    assert PROGRAM.id.hex() == "f1b6aaad219fa6c52690f60d76705dc0"
    assert program_id(PROGRAM.to_bytes()) == PROGRAM.id


def test_an_id_does_not_depend_on_the_order_of_arguments():
    backwards = tuple(
        Call(call.op, dict(reversed(call.args.items())), dict(reversed(call.attrs.items()))) for call in PROGRAM.calls
    )
    assert changed(calls=backwards).id == PROGRAM.id


def test_an_id_depends_on_every_number():
    ids = {PROGRAM.id, with_attrs(0, eps=1e-6).id, with_attrs(2, theta=1e5).id, small_program("other").id}
    assert len(ids) == 4


@pytest.mark.parametrize(
    "other", [{"attrs": {"eps": Attr(float, 0.0, 2.0)}}, {"args": OPS["rms_norm"].args | {"out": Output("D T")}}]
)
def test_an_op_that_a_peer_declares_otherwise_is_refused_by_its_name(monkeypatch, other):
    with monkeypatch.context() as peer:
        peer.setitem(OPS, "rms_norm", replace(OPS["rms_norm"], **other))
        theirs = changed(ops=op_digests(PROGRAM.ops))
    assert [name for name, digest in theirs.ops.items() if digest != PROGRAM.ops[name]] == ["rms_norm"]
    with pytest.raises(UnsupportedOp, match="op 'rms_norm' is declared otherwise than by the peer: install the same"):
        verify(theirs)


def test_ops_that_a_program_does_not_use_may_differ(monkeypatch):
    """A new op does not make older workers strangers."""
    monkeypatch.setitem(OPS, "gated", replace(OPS["gated"], attrs={}))
    verify(PROGRAM)


def test_a_program_without_the_digests_of_its_ops_is_refused():
    with pytest.raises(UnsupportedOp, match="op 'add' is declared otherwise"):
        verify(changed(ops={}))


def test_every_op_is_found_by_its_own_name():
    assert all(name == op.name for name, op in OPS.items())


def test_row_floats_counts_what_each_call_writes():
    assert row_floats(verify(PROGRAM)) == 8 + 8 + 8 + 4 + 8 + 8 + 8


WRONG = {
    "no input": (changed(inputs=()), OpError, "0 inputs and 1 outputs"),
    "two outputs": (changed(outputs=PROGRAM.outputs * 2), OpError, "1 inputs and 2 outputs"),
    "input of fixed rows": (with_input("float32", (5, 8)), ShapeError, "input 'hidden_state'"),
    "input of R rows": (with_input("float32", ("R", 8)), ShapeError, "input 'hidden_state'"),
    "input with an open width": (with_input("float32", ("T", "T")), ShapeError, "input 'hidden_state'"),
    "input of rank 1": (with_input("float32", ("T",)), ShapeError, "input 'hidden_state'"),
    "input of another dtype": (with_input("float64", ("T", 8)), ShapeError, "input 'hidden_state'"),
    "input of unknown symbol": (with_input("float32", ("T", "X")), ShapeError, "input 'hidden_state'"),
    "weight of size 0": (changed(weights=(WeightSpec("norm", 0, (0,)),)), ShapeError, "norm: size 0"),
    "weight too large": (changed(weights=(WeightSpec("norm", 0, (MAX_SIZE,)),)), ShapeError, "norm: size"),
    "weight declared twice": (changed(weights=PROGRAM.weights * 2), OpError, "'norm'.*declared twice"),
    "cache without heads": (changed(states=(PagedKvSpec("kv.0", 0, 4, 4, "f16"),)), ShapeError, "kv.0: size 0"),
    "cache of an unknown type": (
        changed(states=(PagedKvSpec("kv.0", 1, 4, 4, "q4_0"),)),
        OpError,
        "state 'kv.0': type 'q4_0', expected one of f16, q8_0",
    ),
    "state of an unknown group": (
        changed(states=(PagedKvSpec("kv.0", 1, 4, 4, "f16", 8),)),
        OpError,
        "state 'kv.0': group 8, expected 0..7",
    ),
    "state without a window": (
        changed(states=(PagedKvSpec("kv.0", 1, 4, 4, "f16", 0, 0),)),
        OpError,
        "state 'kv.0': window 0, expected 1..2147483647",
    ),
    "two windows in a group": (
        changed(states=(*PROGRAM.states, PagedKvSpec("kv.1", 1, 4, 4, "f16", 0, 9))),
        OpError,
        "state 'kv.1': window 9, but group 0 has 2147483647",
    ),
    "attention behind its state's window": (
        changed(states=(PagedKvSpec("kv.0", 1, 4, 4, "f16", 0, 9),)),
        OpError,
        "attention: window 2147483647, but its state has one of 9",
    ),
    "slots of no axis": (
        changed(states=(*PROGRAM.states, SlotSpec("slot.0", ()))),
        ShapeError,
        "state 'slot.0': 0 axes",
    ),
    "slots for keys and values": (
        changed(states=(SlotSpec("kv.0", (1, 4, 4)),)),
        ShapeError,
        "store_kv.cache: dtype slot, expected kv",
    ),
    "cache not declared": (changed(states=()), OpError, r"store_kv\.cache: value 'kv.0' is not written"),
    "weight not declared": (changed(weights=()), OpError, r"rms_norm\.weight: value 'norm' is not written"),
    "a step value declared": (changed(weights=(WeightSpec("rows", 0, (8,)),)), OpError, "'rows'.*declared twice"),
    "weight of no axis": (changed(weights=(WeightSpec("norm", 0, ()),)), ShapeError, "'norm': 0 axes"),
    "weight of four axes": (changed(weights=(WeightSpec("norm", 0, (1, 1, 1, 8)),)), ShapeError, "'norm': 4 axes"),
    "weight past 64 bits": (
        changed(weights=(WeightSpec("norm", 0, (1 << 30, 1 << 30, 1 << 30)),)),
        ShapeError,
        r"norm: \[1073741824, .* more than 1099511627776 numbers",
    ),
    "cache of large heads": (
        changed(states=(PagedKvSpec("kv.0", 1, 4, 1025, "f16"),)),
        ShapeError,
        r"state 'kv.0': sizes \[1, 4, 1025\], expected 1..1024",
    ),
    "cache of many heads": (
        changed(states=(PagedKvSpec("kv.0", 1025, 4, 4, "f16"),)),
        ShapeError,
        r"state 'kv.0': sizes \[1025, 4, 4\], expected 1..1024",
    ),
    "a program's name with an escape code": (changed(name="\x1b[2J"), OpError, r"program '\\x1b\[2J'"),
    "a program's name too long": (changed(name="p" * 257), OpError, "program 'ppp.*at most 256"),
    "unknown op": (with_call(0, op="exec"), UnsupportedOp, "unknown op 'exec'"),
    "argument missing": (with_call(1, args={"x": "v0", "out": "v1"}), OpError, "linear: arguments"),
    "argument surplus": (with_args(0, y="hidden_state"), OpError, "rms_norm: arguments"),
    "attribute missing": (with_call(0, attrs={}), OpError, "rms_norm: attributes"),
    "attribute surplus": (with_attrs(0, size=3), OpError, "rms_norm: attributes"),
    "attribute of wrong type": (with_attrs(0, eps="small"), OpError, "rms_norm.eps='small', expected float"),
    "attribute out of range": (with_attrs(0, eps=2.0), OpError, "rms_norm.eps=2.0 is outside 0..1"),
    "attribute not a number": (with_attrs(0, eps=float("nan")), OpError, "rms_norm.eps=nan"),
    "whole number as float": (with_attrs(2, n_heads=2.0), OpError, "rope.n_heads=2.0, expected int"),
    "word not in the list": (with_attrs(2, pairing="both"), OpError, "rope.pairing='both', expected one of"),
    "rule broken": (with_attrs(2, rotary_dim=3), OpError, "rotary_dim=3"),
    "read before written": (with_args(0, x="v5"), OpError, "'v5' is not written before it is read"),
    "written twice": (with_args(1, out="v0"), OpError, "'v0'.*declared twice"),
    "an input written": (with_args(0, out="hidden_state"), OpError, "'hidden_state'.*declared twice"),
    "a weight written": (with_args(0, out="wq"), OpError, "'wq'.*declared twice"),
    "a weight as input": (with_args(0, x="wq"), ShapeError, r"rms_norm\.x: dtype any, expected float32"),
    "an input as weight": (with_args(1, weight="v0"), ShapeError, r"linear\.weight: dtype float32, expected any"),
    "a cache as input": (with_args(0, x="kv.0"), ShapeError, "dtype kv"),
    "integers as floats": (with_args(0, x="rows"), ShapeError, "dtype int32"),
    "shapes that do not fit": (with_args(1, weight="wk"), ShapeError, r"H\*E=4, but H\*E=8"),
    "output not written": (
        changed(outputs=(TensorSpec("v99", "float32", ("R", 8)),)),
        ShapeError,
        "output 'v99': None None",
    ),
    "output of another shape": (
        changed(outputs=(TensorSpec("v7", "float32", ("T", 8)),)),
        ShapeError,
        "output 'v7'",
    ),
    "output of integers": (changed(outputs=(TensorSpec("rows", "int32", ("R",)),)), ShapeError, "expected float32"),
    "output a weight": (changed(outputs=(TensorSpec("wq", "any", (8, 8)),)), ShapeError, "expected float32"),
    "rows found by positions": (with_args(7, rows="positions"), OpError, "'positions' cannot stand here"),
    "angles from rows": (with_args(2, positions="rows"), OpError, "'rows' cannot stand here"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_program_is_refused_by_name(what):
    program, error, named = WRONG[what]
    with pytest.raises(error, match=named):
        verify(program)


@pytest.mark.parametrize(
    "name", ["", "w" * 129, "x packed 0 by r", "angles 1", "a/b", "../w", "a\n", "\x1b[2J", "\u202e", "é", "a:b", "'"]
)
def test_a_name_that_is_no_identifier_is_refused_wherever_it_stands(name):
    """Quoted and cut, so that it may be shown."""
    spec = WeightSpec("norm", 0, (8,))
    for program in (
        with_args(0, out=name),
        changed(inputs=(TensorSpec(name, "float32", ("T", 8)),)),
        changed(weights=(msgspec.structs.replace(spec, name=name), *PROGRAM.weights)),
        changed(states=(msgspec.structs.replace(PROGRAM.states[0], name=name), *PROGRAM.states)),
    ):
        with pytest.raises(OpError, match=r"expected 1 to 128 of A-Z a-z 0-9 _ \. # - as a name") as caught:
            verify(program)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


def adds(count):
    """A chain of *count* adds."""
    calls = [Call("add", {"a": f"v{i}", "b": f"v{i}", "out": f"v{i + 1}"}, {}) for i in range(count)]
    x, out = (TensorSpec(name, "float32", ("T", 8)) for name in ("v0", f"v{count}"))
    return Program("adds", (x,), (out,), (), (), tuple(calls), op_digests(["add"]))


def ropes(count):
    """A program whose ropes turn by *count* tables of angles."""
    ops = Builder("ropes")
    x = ops.input("x", ("T", 4))
    for i in range(count):
        x = ops.rope(x, ops.positions, None, n_heads=1, head_dim=4, rotary_dim=4, theta=1e4 + i)
        x = ops.rope(x, ops.positions, None, n_heads=1, head_dim=4, rotary_dim=4, theta=1e4 + i, pairing="halves")
    return ops.program("out", x)


def test_a_program_is_as_large_as_planning_allows_and_no_larger():
    verify(adds(MAX_CALLS))
    verify(ropes(MAX_ANGLES))
    with pytest.raises(OpError, match="'adds': 8001 calls, at most 8000"):
        verify(adds(MAX_CALLS + 1))
    with pytest.raises(OpError, match="'ropes': ropes by 9 tables of angles, at most 8"):
        ropes(MAX_ANGLES + 1)
    with pytest.raises(OpError, match="a program of 1048577 bytes, at most 1048576"):
        Program.from_bytes(bytes(MAX_NBYTES + 1))
    with pytest.raises(OpError, match="not a program: 20001 entries in a list, at most 20000"):
        Program.from_bytes(changed(weights=(WeightSpec("w", 0, (8,)),) * (MAX_VALUES + 1)).to_bytes())


def test_an_error_shows_a_part_of_what_is_long():
    for program in (
        with_call(0, op="o" * 4000),
        with_call(0, args={f"{i:04000}": "x" for i in range(50)}),
        with_call(0, attrs={f"{i:04000}": 1 for i in range(50)}),
        with_attrs(2, pairing="p" * 4000),
        with_args(0, x="v" * 4000),
        with_input("d" * 4000, ("T", 8)),
        changed(outputs=(TensorSpec("o" * 4000, "f" * 4000, ("s" * 4000,)),)),
    ):
        with pytest.raises(OpError) as caught:
            verify(program)
        assert len(str(caught.value)) < 700


def rows_program():
    """A Builder after ``take_rows``, where a tensor has R rows."""
    ops = Builder("rows")
    x = ops.input("hidden_state", ("T", 8))
    return ops, ops.take_rows(x, ops.rows)


def test_the_rows_of_a_step_cannot_be_taken_twice():
    """The second time an index below T would reach beyond R rows."""
    ops, wanted = rows_program()
    again = ops.take_rows(wanted, ops.rows)
    with pytest.raises(ShapeError, match=r"take_rows\.x"):
        ops.program("out", again)


def test_taken_rows_have_no_place_in_the_cache():
    ops, wanted = rows_program()
    cache = ops.cache("kv", n_kv_heads=2, head_dim=4)
    attended = ops.attention(wanted, cache, n_heads=2, n_kv_heads=2, head_dim=4, scale=1.0)
    with pytest.raises(ShapeError, match=r"attention\.q"):
        ops.program("out", attended)


def test_taken_rows_are_looked_up_nowhere():
    """They may be more than a table has."""
    ops = Builder("embed")
    ops.input("token_ids", ("T",), "int32")
    looked_up = ops.embed(Value("rows", ("R",)), ops.weight(WeightSpec("table", 0, (4, 8))))
    with pytest.raises(OpError, match="'rows' cannot stand here"):
        ops.program("out", looked_up)


def test_a_builder_refuses_a_weight_that_is_two_things():
    ops = Builder("twice")
    ops.weight(WeightSpec("w", 0, (4,)))
    with pytest.raises(OpError, match="'w'"):
        ops.weight(WeightSpec("w", 1, (4,)))


def test_a_builder_names_the_values_that_do_not_fit():
    ops = Builder("misfit")
    x = ops.input("hidden_state", ("T", 8))
    with pytest.raises(ShapeError, match=r"program 'misfit'.*K=9.*blk\.0\.ffn_up\.weight"):
        ops.linear(x, ops.weight(WeightSpec("blk.0.ffn_up.weight", 0, (4, 9))))


def assert_program_or_refused(data):
    """Whatever the bytes are: a program that verifies, or one of our errors."""
    try:
        verified = verify(Program.from_bytes(data))
    except OpError:
        return
    assert all(len(shape) <= 8 for shape in verified.shapes.values())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_bytes_never_crash(data):
    mutated = bytearray(PROGRAM.to_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set":
                mutated[at] = data.draw(st.integers(0, 255))
            case "insert":
                mutated[at:at] = data.draw(st.binary(min_size=1, max_size=9))
            case "delete":
                del mutated[at : at + data.draw(st.integers(1, 9))]
            case "cut":
                del mutated[at:]
        mutated = mutated or bytearray(b"\x00")
    assert_program_or_refused(bytes(mutated))


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_well_formed_nonsense_never_crashes(data):
    """The program as plain lists, some parts replaced by anything MessagePack can say."""
    plain = msgspec.msgpack.decode(PROGRAM.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        part = plain
        while True:
            at = data.draw(st.integers(0, len(part) - 1))
            keys = list(part) if isinstance(part, dict) else range(len(part))
            if isinstance(part[keys[at]], list | dict) and part[keys[at]] and data.draw(st.booleans()):
                part = part[keys[at]]
                continue
            part[keys[at]] = data.draw(plain_values)
            break
    assert_program_or_refused(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\xc1", b"\x96" * 2000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_rubbish_is_refused(data):
    """Also nesting without end, and lengths that nobody sent."""
    with pytest.raises(OpError, match="not a program"):
        Program.from_bytes(data)


def test_inputs_are_checked_against_the_step():
    verified = verify(PROGRAM)
    check_inputs(verified, np.zeros((3, 8), np.float32), 3)
    for array, named in (
        (np.zeros((2, 8), np.float32), r"float32 \(2, 8\), expected float32 \(3, 8\)"),
        (np.zeros((3, 8)), "float64"),
        (np.zeros((3, 16), np.float32)[:, ::2], "not C-contiguous"),
    ):
        with pytest.raises(ShapeError, match=named):
            check_inputs(verified, array, 3)
