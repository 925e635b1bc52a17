"""Any valid program does what its ops promise, on every instruction set; any other is refused by name.

``OLLAMA_ZMQ_RANDOM_PROGRAMS`` says how many numbers are tried, each of which is some seven programs; under the
sanitizers (``tox run -e asan``) they are more. ``random_programs.py`` goes on for as long as one likes.
"""

import os

import numpy as np
import pytest

from ollama_zmq.ops.registry import OPS
from tests.ops.random_programs import Fuzzer

BLOCKS = 10
NUMBERS = int(os.environ.get("OLLAMA_ZMQ_RANDOM_PROGRAMS", "300"))


@pytest.fixture(scope="module")
def fuzzer():
    made = Fuzzer()
    yield made
    made.close()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_valid_program_does_what_its_ops_promise(fuzzer, block):
    for number in range(block, NUMBERS, BLOCKS):
        try:
            fuzzer.valid(number)
        except Exception as error:
            pytest.fail(f"Fuzzer().valid({number}): {error}")


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_mutated_program_is_refused_or_is_a_valid_one(fuzzer, block):
    for number in range(block, 2 * NUMBERS, BLOCKS):
        try:
            fuzzer.hostile(number)
        except Exception as error:
            pytest.fail(f"Fuzzer().hostile({number}): {error}")


def test_changed_bytes_are_refused_in_words_or_are_a_program(fuzzer):
    for number in range(2 * NUMBERS):
        try:
            fuzzer.rubbish(number)
        except Exception as error:
            pytest.fail(f"Fuzzer().rubbish({number}): {error}")


def test_every_op_is_drawn():
    """And mutants are some of each: refused, run, and run with steps that are refused."""
    fuzzer = Fuzzer()
    for number in range(40):
        fuzzer.valid(number)
        fuzzer.hostile(number)
    fuzzer.close()
    assert set(OPS) <= set(fuzzer.met)
    kinds = ("mutants refused: OpError", "mutants that ran", "hostile steps that ran", "hostile steps refused")
    assert all(fuzzer.met[kind] for kind in kinds)


def test_what_is_compared_can_fail(monkeypatch):
    """A device whose output differs in one number of one row is found."""
    fuzzer = Fuzzer()
    executable = type(fuzzer.devices[0]).compile

    class Wrong:
        def __init__(self, inner):
            self.inner = inner

        def run(self, array, step):
            out = np.array(self.inner.run(array, step))
            out[-1:, -1:] += 1
            return out

        def close(self):
            self.inner.close()

    monkeypatch.setattr(type(fuzzer.devices[0]), "compile", lambda *args, **named: Wrong(executable(*args, **named)))
    with pytest.raises(AssertionError, match=r"call \d+ of \d+, Call"):
        fuzzer.valid(0)
    monkeypatch.undo()
    fuzzer.close()
