"""Writes ``golden.py`` from ``samples.py``: ``python -m tests.wire.make_golden``. Only together with a new PROTOCOL."""

from __future__ import annotations

from pathlib import Path

from ollama_zmq.wire.frames import encode
from tests.wire.samples import SAMPLES

HEAD = '"""The frame of every message in ``samples.py``; written by ``make_golden.py``."""\n\n# fmt: off\nGOLDEN = {\n'


def main() -> None:
    """Write the file."""
    lines = [HEAD]
    for envelope in SAMPLES:
        (data,) = encode(envelope)
        lines.append(f'    "{type(envelope.message).__name__}": (\n')
        lines += [f"        {data[i : i + 24]!r}\n" for i in range(0, len(data), 24)]
        lines.append("    ),\n")
    Path(__file__).with_name("golden.py").write_text("".join(lines) + "}\n")


if __name__ == "__main__":
    main()
