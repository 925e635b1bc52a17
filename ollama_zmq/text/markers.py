"""Texts by which well-known special tokens are recognised when a file does not name them. llama.cpp's lists."""

# ruff: noqa: RUF001 -- DeepSeek's markers are written with full-width bars

from __future__ import annotations


def _markers(text: str) -> tuple[str, ...]:
    return tuple(text.split())


END_OF_TURN = _markers(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT]"
    " <｜end▁of▁sentence｜> <end_of_utterance>"
)
END_OF_MESSAGE = _markers("<|eom_id|>")
FILL_IN_PREFIX = _markers(
    "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>"
)
FILL_IN_SUFFIX = _markers(
    "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>"
)
FILL_IN_MIDDLE = _markers(
    "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>"
)
FILL_IN_PAD = _markers("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]")
FILL_IN_REPOSITORY = _markers("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>")
FILL_IN_SEPARATOR = _markers("<|file_sep|>")
END_OF_GENERATION = _markers(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>"
    " <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>"
    " <｜end▁of▁sentence｜> [e~["
)
HARMONY_VISIBLE = _markers("<|channel|> <|message|> <|start|> <|constrain|>")
