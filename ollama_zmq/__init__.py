"""Ollama for several machines: one model spread over ``ollama rpc-server`` workers, with ZeroMQ as the bus."""

from ollama_zmq.version import VERSION as __version__

__all__ = ["__version__"]
