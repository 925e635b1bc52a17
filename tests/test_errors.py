"""Laws of the error tree: every class survives every border it crosses, and has an HTTP status."""

import pickle

import pytest

from ollama_zmq import errors
from ollama_zmq.server.errors import STATUS, status_of


def tree(cls=errors.OllamaZmqError):
    """*cls* and every class below it in ``errors.py``."""
    return [
        cls,
        *(each for child in cls.__subclasses__() if child.__module__ == errors.__name__ for each in tree(child)),
    ]


EVERY = pytest.mark.parametrize("cls", tree())


def test_the_tree_holds_every_class_of_the_file():
    defined = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert set(tree()) == defined


@EVERY
def test_an_error_pickles(cls):
    error = cls("worker 'a' holds 3 of 5", worker="a", held=3)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, str(again), again.facts) == (cls, error.message, str(error), error.facts)


@EVERY
def test_an_error_crosses_the_bus_as_kind_and_detail(cls):
    error = cls("slots[1]=2 of 2")
    kind, detail = type(error).__name__, str(error)
    again = errors.error_class(kind)(detail)
    assert (type(again), str(again)) == (cls, "slots[1]=2 of 2")


@pytest.mark.parametrize("name", ["", "ValueError", "OSError", "object", "__class__", "os.system"])
def test_an_unknown_kind_is_the_root(name):
    assert errors.error_class(name) is errors.OllamaZmqError


@EVERY
def test_every_error_has_an_http_status_by_its_nearest_ancestor(cls):
    nearest = next(each for each in cls.__mro__ if each in STATUS)
    assert status_of(cls("x")) == STATUS[nearest]


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.RequestError, 400),
        (errors.ContextOverflow, 400),
        (errors.ModelNotFound, 404),
        (errors.ModelFileError, 500),
        (errors.ShapeError, 500),
        (errors.RemoteProtocolError, 500),
        (errors.OutOfDeviceMemory, 503),
        (errors.ServerBusy, 503),
        (errors.StageLost, 503),
    ],
)
def test_whose_fault_it_is_decides_the_status(cls, status):
    assert status_of(cls("x")) == status


def test_shape_and_op_errors_are_also_python_s_own():
    assert issubclass(errors.ShapeError, ValueError)
    assert issubclass(errors.UnsupportedOp, NotImplementedError)


@EVERY
def test_every_class_says_what_it_means(cls):
    assert cls.__doc__
    assert cls.__doc__.rstrip().endswith(".") or cls is errors.OllamaZmqError
