import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import RequestError
from ollama_zmq.formats.modelfile import (
    ChatMessage,
    Modelfile,
    decode_modelfile,
    format_modelfile,
    parse_modelfile,
    quote,
)

FULL = '''
# a comment
from llama3.2
PARAMETER temperature 0.7
Parameter stop <|im_end|>
PARAMETER stop "  </s>"
TEMPLATE """{{ if .System }}"{{ .System }}"{{ end }}
{{ .Prompt }}"""
SYSTEM "You are
two lines."
ADAPTER ./lora.gguf
LICENSE MIT
LICENSE """
Apache "2.0"
"""
MESSAGE user Why is the sky blue? # not a comment
MESSAGE assistant "Because."
REQUIRES v0.14.0
RENDERER qwen3
PARSER qwen3
'''

printable = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" \t\n#:\\"), max_size=60)
values = printable.filter(lambda text: not any(line.rstrip().endswith('"""') for line in text.split("\n")))
one_word = st.from_regex(r"[a-z0-9_./-]{1,20}", fullmatch=True)


def test_every_command_is_read():
    assert parse_modelfile(FULL) == Modelfile(
        sources=("llama3.2",),
        parameters=(("temperature", "0.7"), ("stop", "<|im_end|>"), ("stop", "  </s>")),
        template='{{ if .System }}"{{ .System }}"{{ end }}\n{{ .Prompt }}',
        system="You are\ntwo lines.",
        adapters=("./lora.gguf",),
        licenses=("MIT", '\nApache "2.0"\n'),
        messages=(
            ChatMessage("user", "Why is the sky blue? # not a comment"),
            ChatMessage("assistant", "Because."),
        ),
        requires="0.14.0",
        renderer="qwen3",
        parser="qwen3",
    )
    assert parse_modelfile(FULL).typed_parameters() == {"temperature": 0.7, "stop": ["<|im_end|>", "  </s>"]}


@given(
    source=one_word,
    system=st.none() | values,
    template=st.none() | values,
    parameters=st.lists(st.tuples(st.sampled_from(["stop", "seed", "rpc_servers"]), values), max_size=3),
    messages=st.lists(st.builds(ChatMessage, st.sampled_from(["user", "assistant", "system"]), values), max_size=3),
    licenses=st.lists(values, max_size=2),
)
def test_formatting_and_parsing_is_identity(source, system, template, parameters, messages, licenses):
    modelfile = Modelfile(
        sources=(source,),
        system=system,
        template=template,
        parameters=tuple(parameters),
        messages=tuple(messages),
        licenses=tuple(licenses),
    )
    assert parse_modelfile(format_modelfile(modelfile, short_name="m:latest")) == modelfile


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text):
    try:
        assert parse_modelfile(text).from_
    except RequestError:
        return


def test_lines_may_end_in_any_way():
    for newline in ("\n", "\r\n", "\r"):
        text = newline.join(["FROM a", "SYSTEM b", 'TEMPLATE "c"'])
        assert parse_modelfile(text) == Modelfile(sources=("a",), system="b", template="c")


def test_the_last_from_counts():
    assert parse_modelfile("FROM a\nFROM b").from_ == "b"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_tell_the_encoding(encoding):
    assert decode_modelfile("FROM čaj".encode(encoding)) == "FROM čaj"


def test_a_byte_order_mark_tells_the_order_of_the_bytes():
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le")):
        assert decode_modelfile(mark + "FROM čaj".encode(encoding)) == "FROM čaj"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("plain", "plain"),
        ('a "word" inside', 'a "word" inside'),
        (" spaced ", '" spaced "'),
        ("two\nlines", '"two\nlines"'),
        ('"all of it"', '""all of it""'),
        ('one "line"\nmore', '"""one "line"\nmore"""'),
    ],
)
def test_no_more_quotes_than_needed(text, quoted):
    assert quote(text) == quoted


COMMAND_ERROR = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FROM line"),
        ("SYSTEM hello", "no FROM line"),
        ("FROM \n", "no FROM line"),
        ("FROM a\n\nBADCOMMAND x", f"(line 3): {COMMAND_ERROR}, not 'BADCOMMAND'"),
        ("FROM: a", f"(line 1): {COMMAND_ERROR}, not 'FROM:'"),
        ("FROM", "(line 1): unexpected EOF: FROM needs a value"),
        ("FROM a\nMESSAGE bad x", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM a\nMESSAGE USER x", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM a\nPARAMETER temperature", "(line 2): unexpected EOF: PARAMETER temperature needs a value"),
        ("FROM a\r\nPARAMETER top-k 3", "(line 2): unexpected EOF: PARAMETER top needs a value"),
        ('FROM a\nSYSTEM "open\nend', "(line 2): unexpected EOF: the quote that opens here is not closed"),
        ('FROM a\nSYSTEM """open"\n', "(line 2): unexpected EOF: the quote that opens here is not closed"),
        ('FROM a\nSYSTEM "', "(line 2): unexpected EOF: the quote that opens here is not closed"),
        ("FROM a\nREQUIRES soon", "requires must be a valid semver (e.g. 0.14.0)"),
    ],
)
def test_mistakes_are_named_with_their_line(text, message):
    with pytest.raises(RequestError) as caught:
        parse_modelfile(text)
    assert str(caught.value) == message


def test_an_unknown_parameter_is_refused():
    with pytest.raises(RequestError, match="unknown parameter 'temperatur'"):
        parse_modelfile("FROM a\nPARAMETER temperatur 1").typed_parameters()


def test_a_long_quoted_text_is_read_in_linear_time():
    """20 000 lines; reading each line again for every later one would take minutes."""
    text = "line of a license\n" * 20_000
    assert parse_modelfile(f'FROM a\nLICENSE """{text}"""').licenses == (text,)
