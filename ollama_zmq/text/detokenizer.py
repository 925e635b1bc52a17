"""Token ids to text while they arrive: never half a UTF-8 character.

A character may be spread over several tokens (an emoji is often four). Its bytes are kept back until they are whole,
or until it is clear that they never will be: then they become U+FFFD, exactly as ``Tokenizer.decode`` would have it.
A character that is unfinished when the last token has come (``num_predict`` cut it) is left out, as Ollama does.
"""

from __future__ import annotations

import codecs

from ollama_zmq.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one sequence, token by token.

    Args:
        continues: the tokens go on after a prompt. Otherwise they begin a text, and where the tokenizer puts a
            space in front of every text, that space is taken away again.
        show_control: also show control tokens, for a parser that looks for them.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = True, show_control: bool = False) -> None:
        self._tokenizer = tokenizer
        self._drops_space = tokenizer.add_space_prefix and not continues
        self._show_control = show_control
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that *token_id* completes; often empty."""
        if not self._show_control and self._tokenizer.is_control(token_id):
            return ""
        piece = self._tokenizer.piece(token_id)
        if piece and self._drops_space:
            piece = piece.removeprefix(b" ")
            self._drops_space = False
        return self._decoder.decode(piece)

    def finish(self) -> None:
        """Forget a character that was cut off, for no token follows. A new text may begin."""
        self._decoder.reset()
