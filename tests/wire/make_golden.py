"""Writes ``golden.py`` from ``samples.py``: ``python -m tests.wire.make_golden``. Only together with a new PROTOCOL."""

from __future__ import annotations

from pathlib import Path

from ollama_zmq.wire.frames import encode
from tests.wire.samples import SAMPLES

HEAD = '"""Frames of every message in ``samples.py``; written by ``make_golden.py``."""\n\n# fmt: off\nGOLDEN = {\n'


def main() -> None:
    """Write the file."""
    lines = [HEAD]
    for envelope in SAMPLES:
        lines.append(f'    "{type(envelope.message).__name__}": [\n')
        for frame in encode(envelope):
            data = bytes(frame)
            pieces = [data[i : i + 24] for i in range(0, len(data), 24)] or [b""]
            lines += [f"        {piece!r}{',' if i == len(pieces) - 1 else ''}\n" for i, piece in enumerate(pieces)]
        lines.append("    ],\n")
    Path(__file__).with_name("golden.py").write_text("".join(lines) + "}\n")


if __name__ == "__main__":
    main()
