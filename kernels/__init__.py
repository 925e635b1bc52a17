"""Kernels, one folder per device. Installed as ``ollama_zmq.kernels``."""
