"""Ollama for several machines: one model spread over ``ollama rpc-server`` workers, with ZeroMQ as the bus."""

from ollama_zmq.version import VERSION

__version__ = VERSION

__all__ = ["__version__"]
