"""Writes a fitted model as the ONNX graph that the gateway runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.complexity.fit import BASE_SHARE, CLIP, Fitted
from benchmarks.complexity.rows import Floats
from gateway.analysis.difficulty import FEATURE_SET
from gateway.analysis.features import DENSE_NAMES

OPSET = 17
IR_VERSION = 9
# A logistic with this steepness is within 1 % of the normal distribution: difficulties come out even.
EVEN = 1.702
VECTORS = "word_vectors"


def graph(fitted: Fitted, vectors: npt.NDArray[np.int8], facts: Mapping[str, str]) -> onnx.ModelProto:
    """`facts` become metadata. The contract is gateway/analysis/difficulty.py's."""
    tables = {
        VECTORS: vectors,
        "mean": fitted.mean,
        "deviation": fitted.deviation,
        "least": np.array(-CLIP),
        "most": np.array(CLIP),
        "projection": fitted.projection,
        "phase": fitted.phase,
        "dense_weights": fitted.dense,
        "cosine_weights": fitted.cosine,
        "vector_weights": fitted.vector,
        "ngram_weights": fitted.table,
        "one": np.array([1.0]),
        "bias": np.array([fitted.bias]),
        **_base_tables(fitted),
        "centre": np.array([fitted.centre]),
        "spread": np.array([fitted.spread]),
        "even": np.array([EVEN]),
        "level": np.array([fitted.platt.level]),
        "slope": np.array([fitted.platt.slope]),
    }
    made = helper.make_graph(
        _nodes(fitted.base is not None),
        "difficulty",
        [
            helper.make_tensor_value_info("words", TensorProto.INT64, ["m"]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("dense", TensorProto.FLOAT, [len(DENSE_NAMES)]),
        ],
        [
            helper.make_tensor_value_info("difficulty", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("p_small_ok", TensorProto.FLOAT, [1]),
        ],
        [
            numpy_helper.from_array(t if t.dtype == np.int8 else t.astype(np.float32), name)
            for name, t in tables.items()
        ],
    )
    model = helper.make_model(
        made,
        producer_name="tidegate train",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    helper.set_model_props(model, {"tidegate.features": FEATURE_SET, **facts})
    onnx.checker.check_model(model, full_check=True)
    return model


def _base_tables(fitted: Fitted) -> dict[str, Floats]:
    """What the model brings along that it started from; what both read alike is added up."""
    base = fitted.base
    if base is None:
        return {}
    return {
        "vector_weights": fitted.vector + BASE_SHARE * base.vector,
        "ngram_weights": fitted.table + BASE_SHARE * base.table,
        "bias": np.array([fitted.bias + BASE_SHARE * base.bias]),
        "base_mean": base.mean,
        "base_deviation": base.deviation,
        "base_projection": base.projection,
        "base_phase": base.phase,
        "base_dense_weights": BASE_SHARE * base.dense,
        "base_cosine_weights": BASE_SHARE * base.cosine,
    }


Step = tuple[str, list[str], str]


def _numbers(prefix: str = "") -> list[Step]:
    """Numbers: standardized, cut, then straight and through the cosines."""
    p = prefix
    return [
        ("Sub", ["dense", f"{p}mean"], f"{p}moved"),
        ("Div", [f"{p}moved", f"{p}deviation"], f"{p}wide"),
        ("Clip", [f"{p}wide", "least", "most"], f"{p}z"),
        ("Mul", [f"{p}z", f"{p}dense_weights"], f"{p}dense_terms"),
        ("MatMul", [f"{p}z", f"{p}projection"], f"{p}projected"),
        ("Add", [f"{p}projected", f"{p}phase"], f"{p}angles"),
        ("Cos", [f"{p}angles"], f"{p}cosines"),
        ("Mul", [f"{p}cosines", f"{p}cosine_weights"], f"{p}cosine_terms"),
    ]


def _nodes(has_base: bool) -> list[onnx.NodeProto]:
    terms = ["dense_terms", "cosine_terms", "vector_terms", "ngram_terms", "bias"]
    steps = [
        *_numbers(),
        # Words: their vectors' sum, brought to length 1.
        ("Gather", [VECTORS, "words"], "vectors"),
        ("Cast", ["vectors"], "vectors_float"),
        ("ReduceSum", ["vectors_float", "axis"], "vector"),
        ("ReduceL2", ["vector"], "length"),
        ("Add", ["length", "one"], "length_or_one"),
        ("Div", ["vector", "length_or_one"], "direction"),
        ("Mul", ["direction", "vector_weights"], "vector_terms"),
        # N-grams.
        ("Gather", ["ngram_weights", "ids"], "ngrams"),
        ("Mul", ["ngrams", "scale"], "ngram_terms"),
    ]
    if has_base:
        steps += _numbers("base_")
        terms += ["base_dense_terms", "base_cosine_terms"]
    steps += [
        ("Concat", terms, "terms"),
        ("ReduceSum", ["terms"], "need"),
        ("Sub", ["need", "centre"], "need_moved"),
        ("Div", ["need_moved", "spread"], "standing"),
        ("Mul", ["standing", "even"], "log_odds"),
        ("Sigmoid", ["log_odds"], "difficulty"),
        ("Mul", ["standing", "slope"], "sloped"),
        ("Add", ["sloped", "level"], "log_odds_ok"),
        ("Sigmoid", ["log_odds_ok"], "p_small_ok"),
    ]
    extra = {
        "vectors_float": {"to": TensorProto.FLOAT},
        "vector": {"keepdims": 0},
        "length": {"keepdims": 1},
        "terms": {"axis": 0},
        "need": {"keepdims": 1},
    }
    axis = helper.make_node("Constant", [], ["axis"], value_ints=[0])
    return [axis, *(helper.make_node(op, ins, [out], **extra.get(out, {})) for op, ins, out in steps)]


def fitted_of(path: Path) -> Fitted:
    """The weights of a trained model that started from none, to start from. Raises ValueError."""
    found = {
        table.name: np.asarray(numpy_helper.to_array(table), np.float64)
        for table in onnx.load(path).graph.initializer
    }
    if "base_mean" in found:
        raise ValueError(f"{path}: started from another model itself")
    return Fitted(
        mean=found["mean"],
        deviation=found["deviation"],
        projection=found["projection"],
        phase=found["phase"],
        dense=found["dense_weights"],
        cosine=found["cosine_weights"],
        vector=found["vector_weights"],
        table=found["ngram_weights"],
        bias=float(found["bias"][0]),
    )


def vectors_of(path: Path) -> npt.NDArray[np.int8]:
    """The word vectors that a trained model carries."""
    for table in onnx.load(path).graph.initializer:
        if table.name == VECTORS:
            return np.asarray(numpy_helper.to_array(table), np.int8)
    raise ValueError(f"{path}: carries no word vectors")
