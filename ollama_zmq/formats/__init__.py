"""Bytes on disk to records and back: GGUF files, Modelfiles, manifests, options. No network, no devices."""
