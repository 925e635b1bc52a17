"""Writes smollm2_tokens.json: what llama.cpp makes of a few hundred texts with SmolLM2's tokenizer.

    pip install llama-cpp-python==0.3.36
    python smollm2_tokens.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_tokens.json

Each entry is [text, ids with parse_special=False, ids with parse_special=True], both with add_special=False.
"""

# ruff: noqa: RUF001 -- letters that look alike are the point

import json
import random
import sys

PIECES = [
    *("Hello", "world", "the quick brown fox", "I'm you're we'll they'd it's I've", "DON'T IT'S WE'LL", "x' s", "ſ'ſ"),
    *("naïve café Ünïcødé", "Straße", "ﬁ ligature", "İstanbul", "ЯЗЫК русский", "Ελληνικά", "עברית", "العربية"),
    *("हिन्दी देवनागरी", "ภาษาไทย", "中文字符", "日本語のテキスト", "한국어 텍스트", "Tiếng Việt", "ǅ ǆ", "ﷺ", "𝔘𝔫𝔦"),
    *("😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪🇯🇵", "❤️", "☃", "©®™", "½¾ ² ³ ①②", "٣٤٥", "Ⅻ", "१२३"),
    *("3.14159", "1234567890", "0x1F600", "1e-9", "1,000,000", "2026-11-23T08:00:00Z", "a1b2c3", "7 77 777 7777"),
    *("def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) { a[i] += b[i]; }", '{"a": [1, 2, {"b": null}]}'),
    *(
        "<html>&amp;</html>",
        "https://example.org/a?b=c&d=%20#e",
        "user@host.tld",
        "C:\\Users\\x",
        "# Title\n\n* item\n",
    ),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<reponame>", "<file_sep>", "<|im_|>", "</s>"),
    *("<|im_start|>user\nhi<|im_end|>\n", "<|im_start|><|im_start|>", " <|im_end|> ", "<|im_end|", "<jupyter_text>"),
    *(" ", "  ", "   ", "        ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", "\x0b", "\x0c", " \n \n  x"),
    *("\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u200b", "\ufeff", "\u00a0\u00a0 \u3000"),
    *("!", "?!", "...", "…", "—", "--", "===", "!!!???", "((([[[{{{", ")))]]]}}}", ",;:", "~`@#$%^&*_+|", "«q»", "“q”"),
    *(
        "a\u0301",
        "e\u0301\u0302",
        "\u0301",
        "\x00",
        "\x01\x7f",
        "\ufffd",
        "\ue000",
        "\U000f0000",
        "\U0001d11e",
        "\u0378",
    ),
]


def texts() -> list[str]:
    """Every piece by itself, then random runs of them."""
    rng = random.Random(7)
    return ["", *PIECES, *("".join(rng.choices(PIECES, k=rng.randint(2, 8))) for _ in range(250))]


def main() -> None:
    """Print one entry per line."""
    from llama_cpp import Llama

    model = Llama(sys.argv[1], vocab_only=True, verbose=False)
    entries = [
        [text, *(model.tokenize(text.encode(), add_bos=False, special=special) for special in (False, True))]
        for text in texts()
    ]
    print("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]")


if __name__ == "__main__":
    main()
