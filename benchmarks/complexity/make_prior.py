"""Makes gateway/analysis/prior.onnx: the difficulty prior, with weights set by hand.

    python benchmarks/complexity/make_prior.py [--out FILE]

The same bytes come out each time. gateway/analysis/PRIOR.md says what the prior is and is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.analysis.difficulty import FEATURE_SET, PRIOR_PATH
from gateway.analysis.features import BUCKETS, DENSE_NAMES

OPSET = 17
IR_VERSION = 9

# In the order of magnitude of log-odds. Length carries most: on public outcome data it is the strongest
# single feature that also holds for subjects not seen before; everything else only shifts it.
DENSE_WEIGHTS = {
    "log_length": 3.6,
    "log_total_length": 0.5,
    "digit_share": 0.3,
    "numbers": 0.5,
    "math": 0.7,
    "code": 0.7,
    "non_ascii_share": 0.3,
    "lookup_words": -0.5,
    "reasoning_words": 1.0,
    "smalltalk": -1.2,
    "word_length": 0.4,
    "lines": 0.3,
    "turns": 0.3,
    "constraints": 0.5,
}
BIAS = -3.0

NGRAM_WEIGHTS = {
    "prove that": 3.0,
    "step by": 2.0,
    "by step": 2.0,
    "time complexity": 3.0,
    "explain why": 2.0,
    "how many": 1.0,
    "trade offs": 2.0,
    "write code": 2.0,
    "python function": 2.0,
    "capital of": -2.0,
    "say hello": -2.0,
    "thank you": -2.0,
    "opposite of": -1.5,
    "how are": -1.5,
    "your name": -2.0,
}


def build() -> onnx.ModelProto:
    """Gather -> ReduceSum -> scale, plus the dense part, through a sigmoid."""
    table = np.zeros(BUCKETS, dtype=np.float32)
    for ngram, weight in NGRAM_WEIGHTS.items():
        table[crc32(ngram.encode()) % BUCKETS] += weight
    weights = np.array([DENSE_WEIGHTS[name] for name in DENSE_NAMES], dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["ngram_weights"]),
        helper.make_node("ReduceSum", ["ngram_weights"], ["ngram_sum"], keepdims=1),
        helper.make_node("Mul", ["ngram_sum", "scale"], ["ngram_part"]),
        helper.make_node("Mul", ["dense", "weights"], ["dense_weighted"]),
        helper.make_node("ReduceSum", ["dense_weighted"], ["dense_part"], keepdims=1),
        helper.make_node("Add", ["ngram_part", "dense_part"], ["parts"]),
        helper.make_node("Add", ["parts", "bias"], ["log_odds"]),
        helper.make_node("Sigmoid", ["log_odds"], ["difficulty"]),
    ]
    graph = helper.make_graph(
        nodes,
        "difficulty",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("dense", TensorProto.FLOAT, [len(DENSE_NAMES)]),
        ],
        [helper.make_tensor_value_info("difficulty", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([BIAS], dtype=np.float32), "bias"),
        ],
    )
    model = helper.make_model(
        graph,
        producer_name="tidegate make_prior",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, {"tidegate.features": FEATURE_SET, "tidegate.kind": "prior, set by hand"})
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PRIOR_PATH, help="where to write the model")
    out = parser.parse_args().out
    data = build().SerializeToString(deterministic=True)
    out.write_bytes(data)
    print(f"{out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
