import gguf
import pytest

from ollama_zmq.errors import ModelFileError, ShapeError
from ollama_zmq.formats.quants import (
    QuantType,
    file_type_name,
    parameter_size,
    row_nbytes,
    tensor_nbytes,
    type_of_id,
)


def test_every_type_of_the_gguf_package_is_known_with_its_sizes():
    known = {(kind.name, kind.id, kind.block_size, kind.block_nbytes) for kind in QuantType}
    published = {(kind.name, int(kind), *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert published <= known


def test_type_of_id_inverts_id():
    assert [type_of_id(kind.id) for kind in QuantType] == list(QuantType)


def test_unknown_and_removed_types_are_named():
    with pytest.raises(ModelFileError, match="unknown tensor type 99"):
        type_of_id(99)
    with pytest.raises(ModelFileError, match=r"tensor type 31 \(Q4_0_4_4\) was removed"):
        type_of_id(31)


def test_rows_are_whole_blocks():
    assert row_nbytes(QuantType.Q4_K, 512) == 288
    assert tensor_nbytes(QuantType.Q8_0, (3, 64)) == 3 * 68
    assert tensor_nbytes(QuantType.F32, ()) == 4
    with pytest.raises(ShapeError, match="row of 100 elements is not a multiple of Q4_K's block of 256"):
        row_nbytes(QuantType.Q4_K, 100)


def test_every_file_type_has_the_name_ollama_prints():
    for kind in gguf.LlamaFileType:
        if kind.name == "GUESSED":
            continue
        expected = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
        assert file_type_name(kind) == expected
    assert file_type_name(15) == "Q4_K_M"
    assert file_type_name(1024) == "unknown"


def test_parameter_size_is_what_ollama_prints():
    assert parameter_size(134515008) == "134.52M"
    assert parameter_size(8030261312) == "8.0B"
