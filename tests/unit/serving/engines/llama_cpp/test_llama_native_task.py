"""Native work in a child: what it answers, and one sentence for each way it can end without an answer."""

from pathlib import Path

import pytest

from serving.engines.base import EngineUnavailable
from serving.engines.llama_cpp.native_task import run_task


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A child's module, to be written."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "tried_child.py"


def run() -> object:
    return run_task("tried_child", {}, "measuring x.gguf", lambda _: None)


def test_what_it_answers(child: Path) -> None:
    child.write_text("print('{\"share\": 0.5}', flush=True)\nprint('{\"done\": [1, 2]}')\n")
    assert run() == [1, 2]
    child.write_text('print(\'{"refused": "no room"}\')\n')
    with pytest.raises(EngineUnavailable, match=r"^measuring x.gguf failed: no room$"):
        run()


@pytest.mark.parametrize(
    ("ending", "sentence"),
    [
        (
            "os.kill(os.getpid(), 4)",
            "crashed (signal 4); llama.cpp has an instruction that this processor refuses",
        ),
        ("os.kill(os.getpid(), 11)", "crashed (signal 11); the source file may be damaged"),
        ("os._exit(3)", "crashed (status 3); the source file may be damaged"),
    ],
)
def test_a_crash_says_what_it_may_come_from(child: Path, ending: str, sentence: str) -> None:
    child.write_text(f"import os\n{ending}\n")
    with pytest.raises(EngineUnavailable) as caught:
        run()
    assert str(caught.value).startswith(f"measuring x.gguf {sentence}")
