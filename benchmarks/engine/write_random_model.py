"""`write_random_model.py GGUF_PACKAGE TOKENIZER_GGUF OUTPUT`: see random_model."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import numpy as np

LAYERS, WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 28, 1536, 8960, 12, 2
HEAD_WIDTH = WIDTH // HEADS
CONTEXT = 32_768
# Q4_0: 32 weights in 18 bytes, a 16-bit scale and 32 nibbles.
_BLOCK_WEIGHTS, _BLOCK_BYTES = 32, 18
_SCALE = np.float16(0.004)


def main(arguments: list[str]) -> int:
    package, source, output = arguments
    sys.path.insert(0, package)
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(output, "llama")
    vocabulary = _copy_tokenizer(gguf, reader, writer)
    writer.add_name("random 1.5B")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    rng = np.random.default_rng(1)
    _add(gguf, writer, rng, "token_embd.weight", vocabulary, WIDTH)
    for layer in range(LAYERS):
        _add_layer(gguf, writer, rng, f"blk.{layer}")
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return 0


def _copy_tokenizer(gguf: Any, reader: Any, writer: Any) -> int:
    """Copies what describes the vocabulary; its size."""
    vocabulary = 0
    for key, field in reader.fields.items():
        if not key.startswith("tokenizer."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        writer.add_key_value(key, value, kind, sub_type=sub)
        if key == "tokenizer.ggml.tokens":
            vocabulary = len(value)
    return vocabulary


def _add_layer(gguf: Any, writer: Any, rng: np.random.Generator, name: str) -> None:
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{name}.{norm}.weight", np.ones(WIDTH, np.float32))
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KV_HEADS * HEAD_WIDTH, WIDTH),
        "attn_v": (KV_HEADS * HEAD_WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FEED_FORWARD, WIDTH),
        "ffn_up": (FEED_FORWARD, WIDTH),
        "ffn_down": (WIDTH, FEED_FORWARD),
    }
    for part, (rows, columns) in shapes.items():
        _add(gguf, writer, rng, f"{name}.{part}.weight", rows, columns)


def _add(gguf: Any, writer: Any, rng: np.random.Generator, name: str, rows: int, columns: int) -> None:
    """Random nibbles under one small scale, so that no activation overflows."""
    blocks = columns // _BLOCK_WEIGHTS
    data = rng.integers(0, 256, (rows, blocks, _BLOCK_BYTES), dtype=np.uint8)
    data[:, :, :2] = np.frombuffer(_SCALE.tobytes(), np.uint8)
    writer.add_tensor(
        name, data.reshape(rows, blocks * _BLOCK_BYTES), raw_dtype=gguf.GGMLQuantizationType.Q4_0
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
