"""The locked requirements: hashed, complete, without a registry, and what the set-up reads from them."""

from pathlib import Path

import pytest
from envsetup import locks

LOCK = """# a comment
aiohttp==3.14.5 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via -r runtime.in
llama-cpp-python==0.3.36 \\
    --hash=sha256:cc
numpy==2.4.6 ; python_full_version < '3.12' \\
    --hash=sha256:dd
"""


def test_engine_is_split_off_with_its_hashes(tmp_path: Path) -> None:
    lock = tmp_path / "runtime.txt"
    lock.write_text(LOCK)
    rest, engine = locks.split_engine(lock)
    assert [locks.name_of(block) for block in locks.blocks(rest)] == ["aiohttp", "numpy"]
    assert "sha256:bb" in rest
    assert "sha256:cc" not in rest
    assert locks.version_of(engine) == "0.3.36"
    assert "sha256:cc" in engine


def test_committed_locks_are_hashed_and_name_no_registry(root: Path) -> None:
    for lock in sorted((root / "requirements").glob("*.txt")):
        text = lock.read_text()
        assert "://" not in text, lock
        for block in locks.blocks(text):
            assert locks.version_of(block), lock
            assert "--hash=sha256:" in block, f"{lock}: {block}"


@pytest.mark.parametrize("name", ["build", "compile", "dev", "gateway", "model", "node", "proto", "runtime"])
def test_locks_hold_what_is_asked_for(root: Path, name: str) -> None:
    def asked(source: Path) -> set[str]:
        lines = [
            line.strip() for line in source.read_text().splitlines() if line.strip()[:1] not in ("", "#")
        ]
        files = [source.with_name(line.split()[1]) for line in lines if line.startswith("-r ")]
        names = {locks.name_of(line) for line in lines if not line.startswith("-r ")}
        return names.union(*(asked(file) for file in files))

    folder = root / "requirements"
    locked = {locks.name_of(block) for block in locks.blocks((folder / f"{name}.txt").read_text())}
    assert asked(folder / f"{name}.in") <= {found.partition("[")[0] for found in locked}


def test_digest_follows_files_settings_and_place(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        (place / "lock").write_text("x")
    first = locks.digest(places[0], ["lock"], "")
    assert locks.digest(places[0], ["lock"], "") == first
    assert locks.digest(places[1], ["lock"], "") != first
    assert locks.digest(places[0], ["lock"], "-DGGML_CUDA=on") != first
    (places[0] / "lock").write_text("y")
    assert locks.digest(places[0], ["lock"], "") != first
