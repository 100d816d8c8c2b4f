"""Any file of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidegate_cli.demo.prompts import MAX_BYTES, fitted, load_prompts
from tidegate_cli.stack import ChildFailed


def write(folder: Path, data: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(data)
    return path


def test_own_prompts_are_many_and_fit() -> None:
    own = load_prompts(None)
    assert len(own.texts) >= 20
    assert own.shortened == 0


def test_one_a_line_without_the_empty_ones(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufefffirst\r\n\r\n   \n  second: größer?  \n".encode())
    assert load_prompts(path).texts == ["first", "second: größer?"]


def test_unusual_line_ends_inside_a_prompt_do_not_split_it(tmp_path: Path) -> None:
    path = write(tmp_path, "one\u2028still one\x0cand still\n".encode())
    assert load_prompts(path).texts == ["one\u2028still one\x0cand still"]


def test_json_lines_and_lines_that_only_look_like_them(tmp_path: Path) -> None:
    lines = [
        json.dumps({"prompt": " from JSON\nwith two lines ", "id": 3}),
        json.dumps({"text": "no member of that name"}),
        "{not JSON at all",
        "{" * 20_000,
    ]
    texts = load_prompts(write(tmp_path, "\n".join(lines).encode())).texts
    assert texts[0] == "from JSON\nwith two lines"
    assert texts[1:3] == [lines[1], lines[2]]
    assert texts[3] == "{" * MAX_BYTES


def test_long_prompts_are_cut_to_whole_characters_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, ("語" * 1000 + "\nshort\n" + "x" * 5000).encode())
    prompts = load_prompts(path)
    assert prompts.shortened == 2
    assert prompts.texts[0] == "語" * (MAX_BYTES // 3)
    assert prompts.texts[1] == "short"
    assert len(prompts.texts[2]) == MAX_BYTES


def test_half_a_surrogate_does_not_break_the_cut() -> None:
    assert fitted("a\ud800b") == "a?b"


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "no prompt in"), (b"\n  \n\n", "no prompt in"), (b"\xff\xfe\x00", "are not UTF-8 text")],
)
def test_files_without_a_prompt_are_told_in_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(ChildFailed, match=said) as caught:
        load_prompts(write(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ChildFailed, match=f"cannot read the prompts in {path}: "):
            load_prompts(path)
