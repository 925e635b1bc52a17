"""What names and texts in messages are made of: checked while a message is decoded, in this one place.

A name is compared, counted and shown, never a path, a key of something planned, or part of a command. Texts are for
people; :mod:`ollama_zmq.printable` makes them safe to show, and nobody shows more than 500 characters of one.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

ProgramId = Annotated[bytes, msgspec.Meta(max_length=16)]
"""The first 16 bytes of the SHA-256 of a program; empty where a message is about none."""

Digest = Annotated[bytes, msgspec.Meta(max_length=32)]
"""A SHA-256, or empty."""

WeightName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.#-]{1,128}\Z")]
"""Of a weight in a program: the alphabet that :mod:`ollama_zmq.ops.program` has."""

BlobName = Annotated[str, msgspec.Meta(pattern=r"\A(?:(?:sha256|file)-[0-9a-f]{64})?\Z")]
"""Of a file in a store (sha256), of one that only the sender has (file), or empty."""

BrokerId = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z")]
"""Random for each broker process."""

WorkerId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{0,64}\Z")]
"""A digest that tells one worker from another, in hexadecimal, or empty."""

DeviceKind = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9_]{1,32}\Z")]
"""Such as "cpu"."""

ErrorKind = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z]{0,64}\Z")]
"""A class of :mod:`ollama_zmq.errors`."""

Short = Annotated[str, msgspec.Meta(max_length=64)]
"""A version, a digest in hexadecimal, a byte order."""

Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""For a person."""
