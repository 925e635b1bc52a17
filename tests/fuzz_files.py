# ruff: noqa: E501 -- lines of words
"""Fuzzes what reads files: ``python -m tests.fuzz_files TARGET SECONDS [SEED]``. Prints the inputs that break a law.

The laws: nothing but an error of ours is raised, no input takes longer than its target's limit, memory does not grow.
``tests/test_fuzz_files.py`` runs each target for some hundred inputs of a fixed seed.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.modelfile import COMMANDS, decode_modelfile, format_modelfile, parse_modelfile
from ollama_zmq.models.network import Network
from ollama_zmq.text.go_templates import GoTemplate
from ollama_zmq.text.jinja_templates import JinjaTemplate
from ollama_zmq.text.model_template import chat_template
from ollama_zmq.text.tokenizer import load_tokenizer
from tests.models_tiny import write_tiny_llama
from tests.text.vocabularies import byte_pairs, sentence_pieces

ODD_NUMBERS = [0, 1, 2, 7, 8, 9, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63, 2**64 - 1]
ODD_TEXTS = [
    "",
    "\0",
    "\ufeff",
    "\u200d",
    "\u202e",
    "\ud83d",
    "\U0001f389",
    "\u00a0",
    "\r\n",
    "a" * 3000,
    '"""',
    "é",
    "<|im_end|>",
]
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": "ho",
        "thinking": "t",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
    },
    {"role": "tool", "content": "4", "tool_name": "f"},
    {"role": "", "content": "x"},
    {"role": "assistant", "content": "one, "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}]


def mutated(rng: random.Random, raw: bytes, n_head: int = 1 << 20) -> bytes:
    """*raw* with some of its first *n_head* bytes changed, moved, repeated or left out."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(min(len(data), n_head) or 1)
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                data[at : at + 8] = rng.choice(ODD_NUMBERS).to_bytes(8, "little")
            case 2:
                data[at : at + 4] = (rng.choice(ODD_NUMBERS) & 0xFFFFFFFF).to_bytes(4, "little")
            case 3:
                del data[at : at + rng.randrange(1, 40)]
            case 4:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 5:
                other = rng.randrange(len(data) or 1)
                data[at : at + 16] = data[other : other + 16]
            case 6:
                del data[rng.randrange(len(data) or 1) :]
    return bytes(data)


class Target:
    """What makes inputs and reads them. *folder* is its own."""

    limit_s = 5.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder


class Gguf(Target):
    """Headers of a small model, opened, read and made a network, a tokenizer and a template."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "x.gguf"
        self.seed = write_tiny_llama(self.path, n_layers=1).read_bytes()
        with open_gguf(self.path) as file:
            self.n_head = min(info.offset for info in file.tensors.values())

    def make(self, rng: random.Random) -> bytes:
        raw = mutated(rng, self.seed, self.n_head)
        return raw[: self.n_head] if rng.random() < 0.1 else raw

    def run(self, raw: bytes) -> None:
        self.path.write_bytes(raw)
        with open_gguf(self.path) as file:
            for part in (
                lambda: [str(file.metadata[key])[:9] for key in file.metadata],
                lambda: Network(file),
                lambda: load_tokenizer(file.metadata).encode("hi the 1234", add_special=True, parse_special=True),
                lambda: chat_template(file.metadata).render(CHAT),
            ):
                try:
                    part()
                except OllamaZmqError:
                    continue


class Modelfile(Target):
    """Modelfiles of commands, quotes and odd characters. What is read is written and read again as the same."""

    words: ClassVar[list[str]] = [
        *COMMANDS,
        *map(str.upper, COMMANDS),
        "from a\n",
        "parameter stop ",
        "parameter seed ",
        "message user ",
        "#",
    ]
    words += [
        "\n",
        "\r\n",
        "\r",
        " ",
        "\t",
        '"',
        '"""',
        "1",
        "-1",
        "0.5",
        "nan",
        "true",
        "x",
        "user",
        "9" * 400,
        *ODD_TEXTS,
    ]

    def make(self, rng: random.Random) -> bytes:
        text = "FROM a\n" * rng.randrange(2) + "".join(rng.choices(self.words, k=rng.randrange(60)))
        encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
        raw = text.encode(encoding, "replace")
        return mutated(rng, raw) if rng.random() < 0.3 else raw

    def run(self, raw: bytes) -> None:
        found = parse_modelfile(decode_modelfile(raw))
        ends = ('"""', '""" ', '"""\t')
        values = [found.system or "", found.template or "", found.parser or "", found.renderer or "", *found.licenses]
        values += [*found.adapters, *found.drafts, *found.sources, *(text for _, text in found.parameters)]
        values += [message.content for message in found.messages]
        if not any(
            line.rstrip(" \t").endswith(ends) for value in values for line in value.replace("\r", "\n").split("\n")
        ):
            assert parse_modelfile(format_modelfile(found)) == found, "it reads back as another"
        found.typed_parameters()


class Go(Target):
    """Go templates made of pieces of real ones."""

    limit_s = 4.0  # MAX_CPU_S, and parsing
    names = "{{ }} {{- -}} .Messages .Content .Role .Prompt .Response .System .Tools .Suffix $ $i := = | ( ) range if else end with "
    names += 'define template block break continue "a" `b` printf print len index slice json eq ne lt and or not html js call . 0 1 -1 99999999 nil true'
    words: ClassVar[list[str]] = [
        *names.split(" "),
        '"%d"',
        '"%9999s"',
        "{{/*",
        "*/}}",
        "\n",
        "range .Messages}}",
        "if .Tools}}",
        "{{end}}",
        '{{$a := "xxxxxxxxxxxxxxx"}}' + '{{$a = printf "%s%s" $a $a}}' * 20,
        '{{$a := "\U0001f389"}}' + '{{$a = printf "%s%s" $a $a}}' * 18,
        "{{range 9999}}{{$b := printf `%s` $a}}{{end}}",
        "{{range 9999}}{{if eq $a (slice $a 1)}}{{end}}{{end}}",
        '{{define "x"}}{{template "y" .}}{{template "y" .}}{{end}}{{define "y"}}{{template "x" .}}{{end}}{{template "x"}}',
        "{{$a}}",
        *ODD_TEXTS,
    ]
    whole = (
        "{{ if .System }}<|system|>{{ .System }}{{ end }}{{ range $i, $m := .Messages }}{{ $m.Role }}: {{ .Content }}"
        "{{ if .ToolCalls }}{{ range .ToolCalls }}{{ json .Function.Arguments }}{{ end }}{{ end }}{{ if eq (len (slice $.Messages $i)) 1 }}x{{ end }}{{ end }}"
    )

    def make(self, rng: random.Random) -> str:
        if rng.random() < 0.4:
            return mutated(rng, self.whole.encode()).decode("utf-8", "replace")
        if rng.random() < 0.05:
            return "{{" + rng.choice(self.words) * rng.randrange(20_000) + "}}"
        return "".join(
            rng.choice((word, f"{{{{{word}}}}}", word + " ")) for word in rng.choices(self.words, k=rng.randrange(40))
        )

    def run(self, source: str) -> None:
        template = GoTemplate(source)
        for render in (
            lambda: template.render(CHAT, tools=TOOLS, think=True),
            lambda: template.render_insert("a", "b"),
        ):
            try:
                render()
            except OllamaZmqError:
                continue


class Jinja(Go):
    """Jinja templates made of pieces of real ones."""

    limit_s = 4.0  # MAX_CPU_S, and compiling
    names = "{{ }} {% %} {%- -%} messages message content role tools for in if elif else endif endfor set endset macro endmacro call endcall "
    names += "filter endfilter loop index last raise_exception strftime_now namespace range dict is defined not and or | ~ + - * / // % ** == < "
    names += "( ) [ ] { } : , . 0 1 -1 99999999 'a' none true tojson join length trim upper replace split format items map select sort"
    words: ClassVar[list[str]] = [
        *names.split(" "),
        "{#",
        "#}",
        "\n",
        "for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "'x' * 999999",
        "{% set a = 'x' * 9999999 %}",
        "{% set a = '\U0001f389' * 999999 %}",
        "{% set l = range(9999) | list %}",
        "{% for i in range(9999) %}",
        "{% if a[1:] == a[:-1] %}{% endif %}",
        "{% if a in a %}{% endif %}",
        "{% if l | sort %}{% endif %}",
        "{% if a | title %}{% endif %}",
        "{% set a = a.replace('x', 'xx') %}",
        "{% set l = [l, l] %}",
        "{% if l == l[:] %}{% endif %}",
        *ODD_TEXTS,
    ]
    whole = (
        "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content | trim }}"
        "{% if message.tool_calls %}{% for t in message.tool_calls %}{{ t.function.arguments | tojson }}{% endfor %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )

    def run(self, source: str) -> None:
        JinjaTemplate(source, bos="<s>", strips_bos=True).render(CHAT, tools=TOOLS, think="low")


class Tokens(Target):
    """Vocabularies with odd values, and odd texts for good ones."""

    def make(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        metadata = rng.choice((byte_pairs, sentence_pieces))("<|x|>", "<|", "|>")
        for _ in range(rng.choice((0, 0, 1, 2))):
            key = rng.choice([*metadata, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.scores", "tokenizer.ggml.pre"])
            odd = [
                None,
                "",
                "x",
                7,
                -1,
                2.5,
                True,
                [],
                ["a"],
                [""],
                ["a b", "b a"],
                [1],
                [2.5],
                ODD_TEXTS,
                "llama",
                "gpt2",
                "gemma4",
            ]
            metadata[key] = rng.choice([*odd, metadata.get(key)])
            if metadata[key] is None:
                del metadata[key]
        words = ["<|x|>", "<|", "|>", "<|im_end|>", "<think>", "hi", " a", "  ", "1234", "\udcff", *ODD_TEXTS]
        return metadata, "".join(rng.choices(words, k=rng.randrange(30)))

    def run(self, given: tuple[dict[str, Any], str]) -> None:
        metadata, text = given
        tokenizer = load_tokenizer(metadata)
        for parse_special in (True, False):
            token_ids = tokenizer.encode(text, add_special=True, parse_special=parse_special)
            assert all(0 <= token_id < tokenizer.vocab_size for token_id in token_ids), "an id beyond the vocabulary"
            tokenizer.decode(token_ids, show_control=True).encode()
        tokenizer.encode(tokenizer.literal(text), add_special=False, parse_special=True)


TARGETS: dict[str, Callable[[Path], Any]] = {
    "gguf": Gguf,
    "modelfile": Modelfile,
    "go": Go,
    "jinja": Jinja,
    "tokens": Tokens,
}


def broken_law(target: Any, given: Any) -> str:
    """What *given* does that no input may do; empty if it behaves."""
    started = time.process_time()
    try:
        target.run(given)
    except OllamaZmqError:
        pass
    except BaseException:  # that is what is looked for
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise
        return traceback.format_exc(limit=-4)
    took_s = time.process_time() - started
    return f"took {took_s:.1f} s" if took_s > target.limit_s else ""


def main(name: str, seconds: str, seed: str = "0") -> None:
    """Run one target for some seconds and print what breaks."""
    with tempfile.TemporaryDirectory() as folder:
        _run(name, TARGETS[name](Path(folder)), float(seconds), random.Random(int(seed)))


def _run(name: str, target: Any, seconds: float, rng: random.Random) -> None:
    seen, count, begin_kb = set[str](), 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        given = target.make(rng)
        if (wrong := broken_law(target, given)) and (
            key := wrong[-300:] if "took" not in wrong else "took"
        ) not in seen:
            seen.add(key)
            print(f"--- {name}, input {count}: {wrong}\n{str(given)[:600]!r}", flush=True)
        count += 1
        if count == 2000:
            begin_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin_kb
    print(
        f"{name}: {count} inputs, {len(seen)} kinds of broken laws, {grown / 1024:.0f} MB more than after 2000",
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
