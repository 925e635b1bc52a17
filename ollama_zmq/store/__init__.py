"""The models on this machine, in Ollama's own layout on disk."""
