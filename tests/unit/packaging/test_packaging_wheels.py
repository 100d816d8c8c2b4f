"""Both wheels are built without a network and opened: they hold what they should and nothing else."""

import configparser
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

SERVICES = {"gateway", "edge_node", "cloud_node", "serving", "simulator", "tidegate_cli"}
SCRIPTS = {
    "tidegate": "tidegate_cli.main:main",
    "tidegate-gateway": "gateway.__main__:main",
    "tidegate-edge": "edge_node.__main__:main",
    "tidegate-cloud": "cloud_node.__main__:main",
}
MAX_WHEEL_BYTES = 2_000_000  # a model or a build product that slips in is larger


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    root = Path(__file__).resolve().parents[3]
    folder = tmp_path_factory.mktemp("wheels")
    for project in (root, root / "sdk"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        built = subprocess.run(command, cwd=project, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert built.returncode == 0, built.stderr
    found = {path.name.split("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}
    assert set(found) == {"tidegate", "tidegate_services"}
    return found


def top_folders(wheel: zipfile.ZipFile) -> set[str]:
    return {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def required(wheel: zipfile.ZipFile) -> dict[str, str]:
    """The unconditional dependencies by name."""
    lines = Parser().parsestr(dist_info(wheel, "METADATA")).get_all("Requires-Dist", [])
    always = [line for line in lines if "extra ==" not in line]
    return {line.partition(">")[0].partition("=")[0].strip(): line for line in always}


def test_sdk_wheel_is_only_the_sdk(wheels: dict[str, zipfile.ZipFile]) -> None:
    wheel = wheels["tidegate"]
    assert top_folders(wheel) == {"tidegate"}
    assert set(required(wheel)) == {"grpcio", "protobuf"}
    assert "tidegate/py.typed" in wheel.namelist()
    assert "tidegate/gateway/v1/gateway_pb2_grpc.py" in wheel.namelist()


def test_services_wheel_is_the_six_packages(wheels: dict[str, zipfile.ZipFile]) -> None:
    wheel = wheels["tidegate_services"]
    assert top_folders(wheel) == SERVICES
    assert required(wheel)["tidegate"] == "tidegate==0.1.0"
    assert "gateway/analysis/prior.onnx" in wheel.namelist()


def test_every_source_and_data_file_is_shipped(wheels: dict[str, zipfile.ZipFile], root: Path) -> None:
    for wheel, base in ((wheels["tidegate"], root / "sdk"), (wheels["tidegate_services"], root)):
        packages = {"tidegate"} if base.name == "sdk" else SERVICES
        files = (path for package in packages for path in (base / package).rglob("*") if path.is_file())
        present = {path.relative_to(base).as_posix() for path in files if "__pycache__" not in path.parts}
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == present


def test_services_wheel_starts_the_programs(wheels: dict[str, zipfile.ZipFile]) -> None:
    wheel = wheels["tidegate_services"]
    parser = configparser.ConfigParser()
    parser.read_string(dist_info(wheel, "entry_points.txt"))
    assert dict(parser["console_scripts"]) == SCRIPTS
    for target in SCRIPTS.values():
        assert target.partition(":")[0].replace(".", "/") + ".py" in wheel.namelist()


@pytest.mark.parametrize("name", ["tidegate", "tidegate_services"])
def test_wheel_carries_licence_and_nothing_heavy(wheels: dict[str, zipfile.ZipFile], name: str) -> None:
    wheel = wheels[name]
    assert "Apache License" in dist_info(wheel, "licenses/LICENSE")
    assert Parser().parsestr(dist_info(wheel, "METADATA"))["License-Expression"] == "Apache-2.0"
    names = wheel.namelist()
    unwanted = (".gguf", ".safetensors", ".pyc", ".so", ".env", ".pem", ".key", ".log")
    assert [entry for entry in names if entry.endswith(unwanted)] == []
    assert [entry for entry in names if "test_" in entry.rsplit("/", 1)[-1]] == []
    heavy = {"gateway/analysis/prior.onnx": 2 * 1024 * 1024}
    assert all(wheel.getinfo(n).file_size <= most for n, most in heavy.items() if n in names)
    assert sum(e.file_size for e in wheel.infolist() if e.filename not in heavy) < MAX_WHEEL_BYTES
