"""The embedding of a model whose layers are on workers: rows of the file, read where they are.

A token's hidden state before the first layer is one dequantized row of ``token_embd.weight``. Through the local device
that would be a stage of its own, two messages and 700 us a token; looking the row up takes a tenth of that, and the
matrix need not be in any device's memory. The row goes through the kernels' own packing, so a model that is split still
equals one that is not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ollama_zmq.formats.gguf import GgufFile
from ollama_zmq.formats.quants import row_nbytes
from ollama_zmq.kernels.cpu import lookup
from ollama_zmq.kernels.cpu.recode import RECODED
from ollama_zmq.kernels.cpu.weights import format_of
from ollama_zmq.models.network import EMBED
from ollama_zmq.ops.program import WeightSpec


class Embedding:
    """Looks up rows of a model file's embedding [V, D].

    Raises:
        UnsupportedOp: the tensor's type has no kernels.
    """

    def __init__(self, gguf: GgufFile) -> None:
        tensor = gguf.tensors[EMBED]
        self._hidden_size = tensor.shape[1]
        self._format = format_of(WeightSpec(EMBED, tensor.type.id, tensor.shape)).index
        self._rows = np.frombuffer(gguf.data(EMBED), np.uint8).reshape(-1, row_nbytes(tensor.type, tensor.shape[1]))
        recoding = RECODED.get(tensor.type.id)
        self._recoding = (recoding.kind.name, recoding.table) if recoding is not None else ()

    def rows(self, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Token ids [T], all of the vocabulary -> hidden state float32 [T, D]."""
        found: npt.NDArray[np.float32] = lookup.rows(
            self._rows, token_ids, self._hidden_size, self._format, *self._recoding
        )
        return found
