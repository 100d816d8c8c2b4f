"""What guards the tree must itself be able to fail: stale generated code, import contracts, the CI script."""

import configparser
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_checks

PACKAGES = ("gateway", "edge_node", "cloud_node", "serving", "simulator", "tidegate_cli")


class TestGeneratedCode:
    @pytest.fixture
    def trees(self, tmp_path: Path) -> tuple[Path, Path]:
        for name in ("fresh", "sdk"):
            (tmp_path / name / "v1").mkdir(parents=True)
            (tmp_path / name / "v1" / "node_pb2.py").write_text("same")
        return tmp_path / "fresh", tmp_path / "sdk"

    def test_same_trees(self, trees: tuple[Path, Path]) -> None:
        (trees[1] / "hand_written.py").write_text("is none of its business")
        assert run_checks.compare_trees(*trees).ok

    def test_changed_file_is_stale(self, trees: tuple[Path, Path]) -> None:
        (trees[1] / "v1" / "node_pb2.py").write_text("edited")
        result = run_checks.compare_trees(*trees)
        assert not result.ok
        assert "stale: sdk/v1/node_pb2.py" in result.output

    def test_left_over_and_missing_files_are_stale(self, trees: tuple[Path, Path]) -> None:
        (trees[1] / "v1" / "gone_pb2.py").write_text("")
        (trees[0] / "v1" / "new_pb2.py").write_text("")
        result = run_checks.compare_trees(*trees)
        assert "stale: sdk/v1/gone_pb2.py\nstale: sdk/v1/new_pb2.py" in result.output

    def test_nothing_generated_is_not_a_pass(self, trees: tuple[Path, Path]) -> None:
        (trees[0] / "v1" / "node_pb2.py").unlink()
        assert not run_checks.compare_trees(*trees).ok


# contract, file with an import that it forbids (or a file that it does not know), what the report says of it
BREACHES = [
    ("programs", "edge_node/extra.py", "import gateway", "edge_node.extra -> gateway"),
    ("programs", "serving/extra.py", "import edge_node", "serving.extra -> edge_node"),
    ("programs", "tidegate/wire/extra.py", "import serving", "tidegate.wire.extra -> serving"),
    (
        "gateway-layers",
        "gateway/state/extra.py",
        "import gateway.dispatch",
        "gateway.state.extra -> gateway.dispatch",
    ),
    ("gateway-layers", "gateway/newcomer/__init__.py", "", "newcomer"),
    (
        "tidegate-layers",
        "tidegate/routing/extra.py",
        "import tidegate.wire",
        "tidegate.routing.extra -> tidegate.wire",
    ),
    ("tidegate-layers", "tidegate/newcomer.py", "", "newcomer"),
    (
        "siblings",
        "gateway/state/extra1.py",
        "import gateway.state.extra2",
        "No cycles are allowed in gateway.state",
    ),
    (
        "siblings",
        "gateway/state/extra2.py",
        "import gateway.state.extra1",
        "No cycles are allowed in gateway.state",
    ),
    ("pure-routing", "tidegate/routing/extra3.py", "import time", "tidegate.routing.extra3 -> time"),
    (
        "protobuf",
        "gateway/dispatch/extra.py",
        "import tidegate.node.v1.node_pb2",
        "gateway.dispatch.extra -> tidegate",
    ),
    ("door-redis", "gateway/state/extra4.py", "import redis.asyncio", "gateway.state.extra4 -> redis"),
    (
        "door-onnxruntime",
        "gateway/dispatch/extra2.py",
        "import onnxruntime",
        "gateway.dispatch.extra2 -> onnxruntime",
    ),
    ("door-llama-cpp", "edge_node/extra2.py", "import llama_cpp", "edge_node.extra2 -> llama_cpp"),
    ("door-prometheus", "gateway/extra.py", "import prometheus_client", "gateway.extra -> prometheus_client"),
    (
        "door-cryptography",
        "gateway/extra2.py",
        "from cryptography import x509",
        "gateway.extra2 -> cryptography",
    ),
]


def lint_imports(tree: Path) -> dict[str, str]:
    """What the report says of each contract that is broken, by the contract's id."""
    names = configparser.ConfigParser()
    names.read(tree / ".importlinter")
    ids = {names[part]["name"]: part.rpartition(":")[2] for part in names.sections() if ":contract:" in part}
    program = Path(sys.executable).parent / "lint-imports"
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "300"}
    command = [str(program), "--no-logo", "--no-cache"]
    report = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True).stdout
    assert "Contracts: " in report, report
    sections: dict[str, str] = {}
    current = ""
    for line in report.partition("Broken contracts")[2].splitlines():
        current = ids.get(line.strip(), current)
        sections[current] = sections.get(current, "") + line + "\n"
    return sections


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """The report on a copy of the tree, and on it with all breaches: reading the tree is what takes time."""
    tree, root = tmp_path_factory.mktemp("tree"), Path(run_checks.ROOT)
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(root / package, tree / package, ignore=ignore)
    shutil.copytree(root / "sdk" / "tidegate", tree / "tidegate", ignore=ignore)
    shutil.copy(root / ".importlinter", tree)
    before = lint_imports(tree)
    for _, file, line, _ in BREACHES:
        (tree / file).parent.mkdir(exist_ok=True)
        (tree / file).write_text(line + "\n")
    return before, lint_imports(tree)


@pytest.mark.parametrize(("contract", "file", "line", "said"), BREACHES)
def test_import_contract_notices(
    reports: tuple[dict[str, str], dict[str, str]], contract: str, file: str, line: str, said: str
) -> None:
    before, after = reports
    assert said not in before.get(contract, "")
    assert said in after[contract]


class TestCiScript:
    def run(self, root: Path, tmp_path: Path, make: str, **settings: str) -> subprocess.CompletedProcess[str]:
        fake = tmp_path / "bin" / "make"
        fake.parent.mkdir()
        fake.write_text(f"#!/bin/sh\n{make}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", **settings}
        return subprocess.run(
            [str(root / ".ci" / "run")],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def test_closing_lines_of_both(self, root: Path, tmp_path: Path) -> None:
        finished = self.run(root, tmp_path, 'echo work; echo "12 passed ($1, $CI)"')
        assert finished.returncode == 0
        assert finished.stdout.splitlines()[-2:] == [
            "make test: exit 0: 12 passed (test, true)",
            "make check: exit 0: 12 passed (check, true)",
        ]

    @pytest.mark.parametrize("target", ["test", "check"])
    def test_either_failure_fails(self, root: Path, tmp_path: Path, target: str) -> None:
        finished = self.run(root, tmp_path, f'echo "ran $1"; [ "$1" != {target} ]')
        assert finished.returncode == 1
        assert f"make {target}: exit 1: ran {target}" in finished.stdout

    def test_hanging_step_is_bounded(self, root: Path, tmp_path: Path) -> None:
        finished = self.run(root, tmp_path, '[ "$1" = check ] || exec sleep 60', CI_TEST_TIMEOUT_S="1")
        assert finished.returncode == 1
        assert "make test: stopped after 1 s" in finished.stdout

    def test_process_left_behind_does_not_hold_it(self, root: Path, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        started = time.monotonic()
        make = f'[ "$1" = check ] || {{ setsid sleep 60 & echo $! > {pid_file}; }}; echo done'
        finished = self.run(root, tmp_path, make)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        assert finished.returncode == 0
        assert time.monotonic() - started < 30


def test_checks_run_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks.main(["nonsense"]) == 2
    assert run_checks.main(["protos"]) == 0
    assert capsys.readouterr().out.endswith("checks: 1 passed\n")
