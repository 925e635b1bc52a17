"""Laws of planning: how calls become steps, and which values may share memory."""

import sys
from itertools import combinations

import pytest

from ollama_zmq.errors import UnsupportedOp
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu.plan import plan
from ollama_zmq.models.network import Network
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify
from tests.models_tiny import write_tiny_llama


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    """The verified layers of a tiny model whose linears are Q8_0."""
    path = write_tiny_llama(tmp_path_factory.mktemp("plan") / "tiny.gguf", kind="Q8_0", n_layers=4)
    with open_gguf(path) as gguf:
        yield verify(Network(gguf).layers_program(range(3)))


def ops_of(planned):
    return [(at, op) for at, step in enumerate(planned.steps) for op in step.ops]


def test_every_call_is_planned_once(layers):
    added = {"copy", "pack", "angles"}
    planned = sorted(op.op for _, op in ops_of(plan(layers, 4)) if op.op not in added)
    assert planned == sorted(call.op for call in layers.program.calls)


def test_what_is_read_was_made_before(layers):
    made = set()
    for _, op in ops_of(plan(layers, 4)):
        assert made.issuperset(op.reads)
        made.add(op.writes)


def test_a_value_is_not_read_in_the_step_that_makes_it_unless_rows_are_chained(layers):
    planned = plan(layers, 4)
    maker = {}
    for at, op in ops_of(planned):
        for value in op.reads:
            assert maker[value] < at or planned.steps[at].kind.value == "rows"
        maker[op.writes] = at


def test_ten_barriers_to_a_layer(layers):
    """Rows, q k v, rows, attention, rows, output, rows, gate and up, rows, down."""
    kinds = [step.kind.value for step in plan(layers, 4).steps]
    assert kinds == [
        "rows",
        "linear",
        "rows",
        "attention",
        "rows",
        "linear",
        "rows",
        "linear",
        "rows",
        "linear",
    ] * 3 + ["rows"]


def test_linears_of_one_input_share_a_step_and_its_packing(layers):
    packed = [op.reads[0] for _, op in ops_of(plan(layers, 4)) if op.op == "pack"]
    assert len(packed) == len(set(packed)) == 4 * 3
    parts = [len(step.ops) for step in plan(layers, 4).steps if step.kind.value == "linear"]
    assert parts == [3, 1, 2, 1] * 3


def test_angles_are_made_once_for_all_layers(layers):
    assert [op.op for _, op in ops_of(plan(layers, 4))].count("angles") == 1


def test_ropes_of_two_scales_have_angles_of_their_own():
    ops = Builder("scales")
    x = ops.input("x", ("T", 4))
    for scale in (1.0, 0.5):
        x = ops.rope(x, ops.positions, None, n_heads=1, head_dim=4, rotary_dim=4, theta=1e4, scale=scale)
    assert [op.op for _, op in ops_of(plan(verify(ops.program("out", x)), 4))].count("angles") == 2


def test_values_that_live_together_do_not_overlap(layers):
    """But for an op on rows that writes over what nobody reads after it."""
    planned = plan(layers, 5)
    lives, last_reader = {}, {}
    for at, op in ops_of(planned):
        for value in (*op.reads, op.writes):
            lives.setdefault(value, [at, at])[1] = at
        last_reader |= dict.fromkeys(op.reads, op.writes)
    lives[layers.output.name][1] = len(planned.steps)
    for a, b in combinations(planned.offsets, 2):
        together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
        begin = max(planned.offsets[a], planned.offsets[b])
        end = min(planned.offsets[value] + planned.sizes[value] for value in (a, b))
        if together and begin < end:
            first, second = (a, b) if lives[a][0] <= lives[b][0] else (b, a)
            assert _writes_over(planned, second, first, last_reader)


def _writes_over(planned, value, earlier, last_reader):
    """Whether *value* took the place of *earlier* directly or through values between them."""
    while earlier != value:
        following = last_reader.get(earlier)
        if following is None or planned.offsets.get(following) != planned.offsets[earlier]:
            return False
        earlier = following
    return True


def test_scratch_does_not_grow_with_layers(tmp_path):
    sizes = []
    for n_layers in (2, 6):
        with open_gguf(write_tiny_llama(tmp_path / f"{n_layers}.gguf", n_layers=n_layers)) as gguf:
            sizes.append(plan(verify(Network(gguf).layers_program(range(n_layers))), 32).scratch_nbytes)
    assert sizes[0] == sizes[1]


def test_no_name_equals_what_the_plan_adds(layers):
    """Names are texts that a peer chose."""
    planned = plan(layers, 4)
    for _, op in ops_of(planned):
        known = op.writes in layers.shapes
        assert isinstance(op.writes, str) == known == (op.op not in ("pack", "angles", "pack_slots", "gather"))


def test_a_cache_is_filled_again_only_after_those_who_read_it():
    """Though the chain of rows before the attention could hold the second store too."""
    ops = Builder("twice")
    x, square = ops.input("x", ("T", 8)), ops.weight(WeightSpec("w", QuantType.F32.id, (8, 8)))
    cache, heads = ops.cache("kv", n_kv_heads=1, head_dim=8), {"n_kv_heads": 1, "head_dim": 8}
    ops.store_kv(x, x, cache, **heads)
    q = ops.add(ops.linear(x, square), x)
    first = ops.attention(q, cache, n_heads=1, **heads, scale=1.0)
    ops.store_kv(q, x, cache, **heads)
    second = ops.attention(q, cache, n_heads=1, **heads, scale=1.0)
    planned = plan(verify(ops.program("out", ops.add(first, second))), 4)
    order = [(op.op, at) for at, op in ops_of(planned) if op.op in ("store_kv", "attention")]
    assert [op for op, _ in order] == ["store_kv", "attention"] * 2
    assert len({at for _, at in order}) == 4


def experts(*widths):
    """x [T, 8] through stacks of 4 experts that read it as one input or as 4, one after the other."""
    ops = Builder("experts")
    x = ops.input("x", ("T", 8))
    routing = ops.linear(x, ops.weight(WeightSpec("g", QuantType.F32.id, (4, 8))))
    for i, K in enumerate(widths):
        stack = ops.weight(WeightSpec(f"w{i}", QuantType.F32.id, (4, 1, K)))
        out = ops.expert_linear(x, routing, stack, n_used=4)
    return verify(ops.program("out", out))


@pytest.mark.parametrize(("widths", "packed"), [((8, 8), [8]), ((2, 2), [2]), ((2, 8), [2, 8]), ((8, 2), [8, 2])])
def test_experts_share_panels_only_of_the_same_width(widths, packed):
    planned = plan(experts(*widths), 3)
    assert [op.attrs["width"] for _, op in ops_of(planned) if op.op == "pack_slots"] == packed


def all_alive(n):
    """Half the calls make values that all live until the other half reads them, last first."""
    ops = Builder("alive")
    x = total = ops.input("x", ("T", 8))
    made = [ops.add(x, x) for _ in range(n // 2)]
    while made:
        total = ops.add(made.pop(), total)
    return ops.program("out", total)


def chained(n):
    """Each call takes two steps of its own."""
    ops = Builder("chained")
    x, square = ops.input("x", ("T", 8)), ops.weight(WeightSpec("w", QuantType.F32.id, (8, 8)))
    for _ in range(n):
        x = ops.linear(x, square)
    return ops.program("out", x)


def late(n):
    """Rows that could be taken at the very first are asked for after a long chain."""
    ops = Builder("late")
    x, square = ops.input("x", ("T", 8)), ops.weight(WeightSpec("w", QuantType.F32.id, (8, 8)))
    y = x
    for _ in range(n // 2):
        y = ops.linear(y, square)
    for _ in range(n // 2):
        ops.take_rows(x, ops.rows)
    return ops.program("out", y)


def attended(n):
    """A store and an attention each, all of one cache."""
    ops = Builder("attended")
    x, cache = ops.input("x", ("T", 8)), ops.cache("kv", n_kv_heads=1, head_dim=8)
    for _ in range(n // 2):
        ops.store_kv(x, x, cache, n_kv_heads=1, head_dim=8)
        x = ops.attention(x, cache, n_heads=1, n_kv_heads=1, head_dim=8, scale=1.0)
    return ops.program("out", x)


def lines_of(function, *args):
    """How many lines of Python a call runs."""
    lines = 0

    def count(frame, event, arg):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("shape", [all_alive, chained, late, attended])
def test_planning_twice_the_calls_is_twice_the_work(shape):
    small, large = (lines_of(plan, verify(shape(n)), 4) for n in (400, 800))
    assert large < 2.2 * small


def test_a_type_without_kernels_is_named():
    ops = Builder("odd")
    out = ops.linear(
        ops.input("x", ("T", 256)), ops.weight(WeightSpec("blk.0.odd.weight", QuantType.Q1_0.id, (4, 256)))
    )
    with pytest.raises(UnsupportedOp, match=r"blk\.0\.odd\.weight: type Q1_0 has no CPU kernel, only BF16"):
        plan(verify(ops.program("out", out)), 1)
