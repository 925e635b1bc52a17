"""Writes a llama model of random weights that loads in milliseconds, with every part a real one has.

The vocabulary is byte-level BPE: three control tokens, the 256 bytes, a few dozen merges. Weights have
standard deviation 1/sqrt(K), so hidden states keep their size and the logits are not degenerate.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = (
    "Ġ t|h e|Ġ a|i n|r e|Ġt he|o n|e r|Ġ s|a t|Ġ w|Ġ o|e n|Ġ c|i t|i s|a n|o r|e s|Ġ b|e d|Ġ f|in g|Ġ p|o u|"
    "Ġa n|a l|a r|Ġt o|Ġ m|Ġo f|Ġ in|Ġ d|Ġ h|Ġan d|e l|h el|l o|hel lo"
)
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7}
FILE_TYPES |= {"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23}
FILE_TYPES |= {"IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ2_S": 28, "IQ4_XS": 30, "IQ1_M": 31, "TQ1_0": 36, "TQ2_0": 37}
FILE_TYPES |= {"MXFP4": 38, "NVFP4": 39}
RANDOM_BLOCKS = {  # where the float16 scale and the minimum of a block lie, and their ratio
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0),
    "IQ4_NL": (0, None, 0),
    "IQ4_XS": (0, None, 0),
    "IQ2_XXS": (0, None, 0),
    "IQ2_XS": (0, None, 0),
    "IQ2_S": (0, None, 0),
    "IQ3_XXS": (0, None, 0),
    "IQ3_S": (0, None, 0),
    "IQ1_S": (0, None, 0),
    "IQ1_M": (None, None, 0),
    "NVFP4": (None, None, 0),
}


def write_tiny_llama(
    path: str | Path,
    *,
    kind: str = "F16",
    output_kind: str | None = None,
    n_layers: int = 4,
    hidden_size: int | None = None,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    ffn_size: int | None = None,
    context_length: int = 512,
    rope_theta: float = 10000.0,
    rope_freqs: bool = False,
    tied: bool = True,
    biases: bool = False,
    ffn_biases: bool = False,
    experts: tuple[int, int] = (0, 0),
    chat_template: str | None = CHAT_TEMPLATE,
    name: str = "tiny",
    seed: int = 0,
) -> Path:
    """Write the model to *path* and return it.

    Args:
        kind: type of the linears and the embedding, one of FILE_TYPES.
        output_kind: type of a separate output head; *kind* if None.
        hidden_size, head_dim, ffn_size: 64, 16 and 128, or 256, 64 and 512 for the types with blocks of 256.
        rope_freqs: add ``rope_freqs.weight`` float32 [head_dim / 2], as Llama 3.1 has.
        tied: no ``output.weight``; the head is the embedding.
        experts: how many a layer has and how many of them a token uses; (0, 0) is a dense feed-forward.
        biases, ffn_biases: add biases of the four attention linears, of the three feed-forward ones.
    """
    wide = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 256
    D, K, F = hidden_size or (256 if wide else 64), head_dim or (64 if wide else 16), ffn_size or (512 if wide else 128)
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_block_count(n_layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv_heads)
    writer.add_key_length(K)
    writer.add_value_length(K)
    writer.add_rope_dimension_count(K)
    writer.add_rope_freq_base(rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    if experts[0]:
        writer.add_expert_count(experts[0])
        writer.add_expert_used_count(experts[1])
    n_tokens = add_vocabulary(writer, chat_template)

    def linear(tensor: str, n_rows: int, n_columns: int, stored_as: str = kind, bias: bool = False) -> None:
        values = draw_linear(rng, stored_as, n_rows, n_columns)
        plain = stored_as in ("F32", "F16")
        writer.add_tensor(f"{tensor}.weight", values, raw_dtype=None if plain else gguf.GGMLQuantizationType[stored_as])
        if bias:
            writer.add_tensor(f"{tensor}.bias", rng.normal(0, 0.1, size=n_rows).astype(np.float32))

    def stack(tensor: str, n_rows: int, n_columns: int) -> None:
        values = draw_linear(rng, kind, experts[0] * n_rows, n_columns).reshape(experts[0], n_rows, -1)
        plain = kind in ("F32", "F16")
        writer.add_tensor(f"{tensor}.weight", values, raw_dtype=None if plain else gguf.GGMLQuantizationType[kind])

    def feed_forward(i: int) -> None:
        if not experts[0]:
            linear(f"blk.{i}.ffn_gate", F, D, bias=ffn_biases)
            linear(f"blk.{i}.ffn_up", F, D, bias=ffn_biases)
            linear(f"blk.{i}.ffn_down", D, F, bias=ffn_biases)
            return
        linear(f"blk.{i}.ffn_gate_inp", experts[0], D, "F32")
        stack(f"blk.{i}.ffn_gate_exps", F, D)
        stack(f"blk.{i}.ffn_up_exps", F, D)
        stack(f"blk.{i}.ffn_down_exps", D, F)

    def norm(tensor: str) -> None:
        writer.add_tensor(f"{tensor}.weight", rng.normal(1, 0.1, size=D).astype(np.float32))

    linear("token_embd", n_tokens, D)
    if rope_freqs:
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, K // 2, dtype=np.float32))
    for i in range(n_layers):
        norm(f"blk.{i}.attn_norm")
        linear(f"blk.{i}.attn_q", n_heads * K, D, bias=biases)
        linear(f"blk.{i}.attn_k", n_kv_heads * K, D, bias=biases)
        linear(f"blk.{i}.attn_v", n_kv_heads * K, D, bias=biases)
        linear(f"blk.{i}.attn_output", D, n_heads * K, bias=biases)
        norm(f"blk.{i}.ffn_norm")
        feed_forward(i)
    norm("output_norm")
    if not tied:
        linear("output", n_tokens, D, output_kind or kind)
    write_all(writer)
    return Path(path)


def add_vocabulary(writer: gguf.GGUFWriter, chat_template: str | None = CHAT_TEMPLATE) -> int:
    """Add a byte-level BPE vocabulary and return how many tokens it has."""
    merges = MERGES.split("|")
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [*CONTROL_TOKENS, *byte_characters(), *merged]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL_TOKENS) + [1] * (len(tokens) - len(CONTROL_TOKENS)))
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    return len(tokens)


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def draw_linear(rng: np.random.Generator, kind: str, n_rows: int, n_columns: int) -> np.ndarray:
    """Random weights of standard deviation 1/sqrt(n_columns) stored as *kind*: floats or bytes [n_rows, ...]."""
    std = n_columns**-0.5
    if kind in RANDOM_BLOCKS:
        return _random_blocks(rng, kind, n_rows, n_columns, std)
    values = rng.normal(0, std, size=(n_rows, n_columns)).astype(np.float32)
    return gguf.quantize(values, gguf.GGMLQuantizationType[kind])


def _random_blocks(rng: np.random.Generator, kind: str, n_rows: int, n_columns: int, std: float) -> np.ndarray:
    """Random blocks of a type that the gguf package cannot quantise to, with the scales that give mean 0 and *std*."""
    quant = gguf.GGMLQuantizationType[kind]
    block_size, block_nbytes = gguf.GGML_QUANT_SIZES[quant]
    scale_at, minimum_at, ratio = RANDOM_BLOCKS[kind]
    blocks = rng.integers(0, 256, size=(n_rows * n_columns // block_size, block_nbytes), dtype=np.uint8)

    def put_scale(scale: float) -> None:
        if kind == "NVFP4":  # floats of 4 and 3 bits, halved; their bits rise like a logarithm
            blocks[:, :4] = np.clip(8 * (np.log2(2 * scale) + 7), 1, 126)
            return
        if kind == "IQ1_M":  # 4 bits of it in each of the last 4 words
            bits = np.array(scale, np.float16).view(np.uint16) >> np.arange(0, 16, 4) & 15
            blocks[:, 49::2] = blocks[:, 49::2] & 0x0F | (bits << 4)
            return
        blocks[:, scale_at : scale_at + 2] = np.array([scale], np.float16).view(np.uint8)
        if minimum_at is not None:
            blocks[:, minimum_at : minimum_at + 2] = np.array([ratio * scale], np.float16).view(np.uint8)

    put_scale(1)
    put_scale(std / float(gguf.dequantize(blocks, quant).std()))
    return blocks.reshape(n_rows, -1)


def write_all(writer: gguf.GGUFWriter) -> None:
    """Write what *writer* has been told and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
