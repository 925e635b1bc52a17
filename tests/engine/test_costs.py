from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.engine.costs import FORGET_AFTER, CostCurve, Line, fitted

WRONG = Line(1.0, 1.0)


def curve_of(samples, expected=WRONG):
    curve = CostCurve(expected)
    for rows, seconds in samples:
        curve.observe(rows, seconds)
    curve.fit()
    return curve


@given(f=st.floats(1e-4, 1), k=st.floats(1e-5, 0.1), sizes=st.sets(st.sampled_from([1, 3, 9, 40, 300]), min_size=2))
def test_a_line_is_found_whatever_was_expected(f, k, sizes):
    curve = curve_of([(rows, f + k * rows) for rows in sizes])
    for rows in (1, 7, 100, 512):
        assert curve.seconds(rows) == pytest.approx(f + k * rows, rel=1e-3)


def test_one_size_or_a_few_like_it_scale_what_was_expected():
    assert fitted([(4, 10.0)], WRONG) == Line(2.0, 2.0)
    assert fitted([(1, 2.2), (2, 9.0)], WRONG).seconds(9) == pytest.approx(10 * (1.1 + 3) / 2)
    assert curve_of([]).seconds(9) == 10.0


@given(knots=st.lists(st.tuples(st.integers(1, 512), st.floats(1e-5, 10)), min_size=2, max_size=8))
def test_no_line_has_negative_parts(knots):
    line = fitted(knots, WRONG)
    assert min(line.fixed_s, line.row_s) >= 0
    assert line.fixed_s + line.row_s > 0


def test_what_is_no_line_is_kept_where_it_was_measured():
    measured = {1: 43.0, 3: 53.0, 4: 75.0, 8: 151.0}
    curve = curve_of(measured.items())
    assert {rows: curve.seconds(rows) for rows in measured} == pytest.approx(measured)
    assert 53 < curve.seconds(3.5) < 75


def test_outliers_do_not_count():
    samples = [(rows, 1.0 + rows) for rows in (1, 8) for _ in range(9)]
    samples[::5] = [(rows, 50.0) for rows, _ in samples[::5]]
    assert curve_of(samples).seconds(4) == pytest.approx(5.0)


def test_a_change_is_believed_after_a_few_samples():
    curve = curve_of([(rows, 1.0 + rows) for rows in (1, 8) for _ in range(50)])
    for _ in range(5):
        curve.observe(8, 30.0)
    curve.fit()
    assert curve.seconds(8) == pytest.approx(30.0)


def test_a_size_that_is_not_met_any_more_is_forgotten():
    curve = curve_of([(1, 500.0), *[(8, 8.0)] * (FORGET_AFTER + 1)])
    assert curve.seconds(1) == pytest.approx(8.0 * 2 / 9)


def test_time_that_no_clock_sees_is_not_nothing():
    assert curve_of([(1, 0.0), (8, 0.0)]).seconds(8) > 0
    assert Line(0.0, 0.0).seconds(1) > 0


def test_more_rows_that_take_less_are_the_same_for_each_number_of_rows():
    """The constant c that makes the sum of (c / s - 1)^2 least, tried on a grid."""
    best = min(range(1000, 2000), key=lambda c: (c / 2000 - 1) ** 2 + (c / 1000 - 1) ** 2)
    assert fitted([(1, 2.0), (8, 1.0)], WRONG) == Line(pytest.approx(best / 1000), 0.0)


def test_beyond_what_was_measured_the_line_is_off_as_much_as_at_its_end():
    curve = curve_of([(1, 43.0), (3, 53.0), (4, 75.0), (8, 151.0)])
    assert curve.seconds(64) == pytest.approx(curve.line.seconds(64) * 151 / curve.line.seconds(8))
