"""Models as their makers publish them, folders of safetensors, written as GGUF files."""
