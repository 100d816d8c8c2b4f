"""Makes a small vector for each word bucket from a sentence encoder's words, once.

    python -m benchmarks.complexity.vectors --encoder DIR --out FILE.npy

DIR holds model.safetensors and vocab.txt of all-MiniLM-L6-v2 (Apache-2.0). Each of its frequent whole words
is run through the encoder alone; the result is centred, brought to 64 dimensions by its principal
components, weighted down by how common the word is (rank in the vocabulary, which is ordered by frequency),
and rounded to int8. Of words that share a bucket the most frequent keeps it. No labels and no prompts take
part. Training needs only the outcome, which every trained model carries: train.py takes it from the shipped
prior."""

from __future__ import annotations

import argparse
import json
import math
import re
import struct
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gateway.analysis.features import BUCKETS

DIMENSIONS = 64
WORDS = 12_000
COMMON = 1e-3
LAYERS, HEADS, WIDTH = 6, 12, 384
Floats = npt.NDArray[np.float32]


def tensors(path: Path) -> dict[str, Floats]:
    """The float32 arrays of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            flat = np.frombuffer(data, np.float32, (end - begin) // 4, 8 + size + begin)
            found[name] = flat.reshape(about["shape"])
    return found


class Encoder:
    """BERT's forward pass for equally long inputs, mean over positions."""

    def __init__(self, weights: dict[str, Floats]) -> None:
        self._w = weights

    def __call__(self, ids: npt.NDArray[np.int64]) -> Floats:
        w = self._w
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            x = self._layer(x, f"encoder.layer.{layer}.")
        mean: Floats = x.mean(axis=1)
        return mean

    def _layer(self, x: Floats, at: str) -> Floats:
        many, long = x.shape[:2]
        q, k, v = (
            self._linear(x, f"{at}attention.self.{part}").reshape(many, long, HEADS, -1).swapaxes(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(2, 3) / math.sqrt(WIDTH / HEADS)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True) @ v).swapaxes(1, 2).reshape(many, long, WIDTH)
        x = self._norm(
            x + self._linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm"
        )
        inner = self._linear(x, f"{at}intermediate.dense")
        # GELU with the hyperbolic tangent: within 1e-3 of the exact one.
        inner = (
            0.5
            * inner
            * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (inner + 0.044715 * inner * inner * inner)))
        )
        return self._norm(x + self._linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")

    def _linear(self, x: Floats, name: str) -> Floats:
        product: Floats = x @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return product

    def _norm(self, x: Floats, name: str) -> Floats:
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        normed: Floats = (x - x.mean(axis=-1, keepdims=True)) / spread
        return normed * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]


def word_table(folder: Path) -> npt.NDArray[np.int8]:
    """[BUCKETS, DIMENSIONS]; zeros where no word lies."""
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    first, last = vocabulary.index("[CLS]"), vocabulary.index("[SEP]")
    # Before "!" come the control tokens and the unused ones; single characters follow it.
    start = vocabulary.index("!")
    words = [i for i, t in enumerate(vocabulary) if i >= start and re.fullmatch(r"\w+", t)][:WORDS]
    encoder = Encoder(tensors(folder / "model.safetensors"))
    parts = [words[at : at + 512] for at in range(0, len(words), 512)]
    found = np.concatenate([encoder(np.array([[first, word, last] for word in part])) for part in parts])
    found = found - found.mean(axis=0)
    components = np.linalg.svd(found, full_matrices=False)[2][:DIMENSIONS]
    share = 0.08 / np.arange(1, len(words) + 1)
    found = (found @ components.T) * (COMMON / (COMMON + share))[:, None]
    table = np.zeros((BUCKETS, DIMENSIONS), np.float32)
    taken: set[int] = set()
    for word, vector in zip(words, found, strict=True):
        bucket = crc32(vocabulary[word].encode()) % BUCKETS
        if bucket not in taken:
            taken.add(bucket)
            table[bucket] = vector
    return np.round(table * (127.0 / np.abs(table).max())).astype(np.int8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--out", type=Path, required=True, help="where to write the table")
    args = parser.parse_args()
    table = word_table(args.encoder)
    np.save(args.out, table)
    print(f"{args.out}: {np.count_nonzero(table.any(axis=1))} of {BUCKETS} buckets have a vector")


if __name__ == "__main__":
    main()
