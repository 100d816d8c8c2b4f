"""The thread that prepares inputs outlives its inputs; grammars of requests only where they are allowed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serving.engines.llama_cpp.gguf_check import GgufHeader
from serving.engines.llama_cpp.identity import describe
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import Speeds

# llama.cpp is imported in child processes only.
CHILD = """
import json, queue
from types import SimpleNamespace
from serving.engines.llama_cpp.intake import InputPreparer
from tidegate.routing.domain import AttemptKey, InputKind, Sampling, Work

done = queue.Queue()
preparer = InputPreparer(SimpleNamespace(n_vocab=10), None, 512, done.put)
preparer.start()
for number in (1, 2):
    work = Work(AttemptKey("r", number), "t", "", InputKind.TEXT, b"x", Sampling(), 5)
    preparer.put(number, work, 0.0)
print(json.dumps([done.get(timeout=10.0).failure.cause.value for _ in (1, 2)]))
"""


EMBEDDING_CHILD = """
import json, queue
from types import SimpleNamespace
from serving.engines.llama_cpp.embedding import Embedder

done = queue.Queue()
config = SimpleNamespace(pooling="mean", embedding_tokens=512)
embedder = Embedder(SimpleNamespace(context_train=512), config, done.put)
embedder.start()
for sid in (1, 2):
    embedder.put(sid, ["x"])
print(json.dumps([done.get(timeout=10.0)["cause"] for _ in (1, 2)]))
"""


@pytest.mark.parametrize(
    ("child", "cause"), [(CHILD, "invalid_input"), (EMBEDDING_CHILD, "internal")], ids=["prompts", "texts"]
)
def test_a_defect_with_one_input_is_that_input_s_alone(child: str, cause: str) -> None:
    # The model has no tokenizer at all: every input meets an error that nobody expected.
    ended = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [cause, cause]


@pytest.mark.parametrize("allowed", [False, True])
def test_grammars_of_requests_are_announced_only_where_they_are_taken(allowed: bool) -> None:
    settings = LlamaCppSettings(model_path=Path("m.gguf"), model="m", grammars=allowed)
    header = GgufHeader(3, "llama", "Q4_0", 512, True, 1)
    ready = {"build": "b", "template": "t", "context_tokens": 512, "threads": 1}
    info = describe(settings, header, None, "digest", ready, Speeds(1.0, ()))
    assert ("grammar" in info.variants[0].capabilities) is allowed
    assert "json_schema" in info.variants[0].capabilities
