"""The versions a peer must know: the package's, the protocol's, and that of the interface to clients."""

VERSION = "0.1.0"
PROTOCOL = 2
OLLAMA_VERSION = "0.34.0"  # the Ollama whose API we keep; clients compare it, and some refuse what is older than this
