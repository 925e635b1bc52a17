"""What Ollama's clients send and expect, name by name. What Ollama leaves out when it is zero has a default here.

How bodies are read stands in :mod:`ollama_zmq.server.decoding`. A text that is "" was not given: Ollama's own client
always sends ``system``, ``template`` and ``suffix``.
"""
