"""What deploy/ promises, read from its files: non-root, hardened, pinned, no secret inside, loadable."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_node.settings import CloudSettings
from edge_node.settings import EdgeSettings
from gateway.settings import GatewaySettings
from serving.settings import ProgramSettings, load_settings

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
PROGRAMS = {"gateway": GatewaySettings, "edge": EdgeSettings, "cloud": CloudSettings}
SECRETS = "/etc/tidegate/secrets/"


def instructions(program: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions with their continuation lines joined."""
    text = (DEPLOY / "docker" / f"Dockerfile.{program}").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines() if line.strip())
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def last_stage(program: str) -> list[tuple[str, str]]:
    found = instructions(program)
    starts = [number for number, (word, _) in enumerate(found) if word == "FROM"]
    assert len(starts) == 2, "one stage builds, one runs"
    return found[starts[-1] :]


@pytest.mark.parametrize("program", PROGRAMS)
class TestDockerfiles:
    def test_runs_as_a_numeric_user(self, program: str) -> None:
        users = [rest for word, rest in last_stage(program) if word == "USER"]
        assert users[-1] == "10001:10001"

    def test_is_healthy_by_its_own_python(self, program: str) -> None:
        (check,) = (rest for word, rest in last_stage(program) if word == "HEALTHCHECK")
        assert '"python3", "-c"' in check
        assert "curl" not in check
        code = re.search(r'"-c", "(.*)"\]$', check)
        assert code is not None
        compile(code[1], "healthcheck", "exec")

    def test_base_is_pinned_and_compilers_stay_behind(self, program: str) -> None:
        arguments = [rest for word, rest in instructions(program) if word == "ARG"]
        assert "BASE=python:3.11-slim-bookworm" in arguments
        assert not any("g++" in rest or "cmake" in rest for _, rest in last_stage(program))

    def test_every_requirement_is_hashed(self, program: str) -> None:
        commands = re.split(
            r"&&|; ", " && ".join(rest for word, rest in instructions(program) if word == "RUN")
        )
        fetching = [part for part in commands if re.search(r"pip (install|wheel)", part)]
        assert fetching
        for part in fetching:
            offline = "--no-index" in part or ("--no-deps" in part and "--no-build-isolation" in part)
            assert "--require-hashes" in part or offline, part

    def test_engine_is_portable(self, program: str) -> None:
        arguments = [rest for word, rest in instructions(program) if word == "ARG"]
        assert ('CMAKE_ARGS="-DGGML_NATIVE=OFF"' in arguments) == (program != "gateway")

    def test_starts_the_program_with_its_file(self, program: str) -> None:
        stage = dict(last_stage(program))
        assert stage["ENTRYPOINT"] == f'["tidegate-{program}"]'
        assert stage["CMD"] == f'["--config", "/etc/tidegate/{program}.toml"]'

    def test_passes_hadolint(self, program: str) -> None:
        hadolint = Path(sys.executable).parent / "hadolint"
        file = DEPLOY / "docker" / f"Dockerfile.{program}"
        linted = subprocess.run([str(hadolint), str(file)], capture_output=True, text=True)
        assert linted.returncode == 0, linted.stdout


def test_requirements_of_images_agree_with_the_tested_ones() -> None:
    def pins(name: str) -> set[str]:
        text = (DEPLOY.parent / "requirements" / name).read_text()
        return set(re.findall(r"^[a-z0-9-]+==[^ ]+", text, re.M))

    for image in ("gateway.txt", "node.txt"):
        assert pins(image) <= pins("runtime.txt")
    assert pins("compile.txt") <= pins("dev.txt")
    assert not any(pin.startswith("llama") for pin in pins("gateway.txt"))
    assert any(pin.startswith("llama-cpp-python==") for pin in pins("node.txt"))


# Imports all of some packages with only those third-party packages that an image holds.
ONLY_LOCKED = """
import importlib, pkgutil, re, sys
from importlib.metadata import packages_distributions

lock, packages = sys.argv[1], sys.argv[2:]
locked = {name.replace("_", "-") for name in re.findall(r"^([a-z0-9._-]+)==", open(lock).read(), re.M)}
ours = {"tidegate", "tidegate-services"}
missing = {
    module
    for module, owners in packages_distributions().items()
    if not any(owner.lower().replace("_", "-").replace(".", "-") in locked | ours for owner in owners)
}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"not in the image: {name}")


sys.meta_path.insert(0, Absent())
for name in packages:
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("lock", "packages"),
    [("gateway.txt", ("gateway",)), ("node.txt", ("edge_node", "cloud_node", "serving"))],
)
def test_an_image_holds_what_its_programs_import(
    lock: str, packages: tuple[str, ...], tmp_path: Path
) -> None:
    def run(locked: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", ONLY_LOCKED, str(locked), *packages]
        return subprocess.run(command, capture_output=True, text=True)

    whole = DEPLOY.parent / "requirements" / lock
    ran = run(whole)
    assert ran.returncode == 0, ran.stderr
    # The control: without one of its packages they do not start.
    less = tmp_path / lock
    less.write_text(re.sub(r"^cryptography==.*$", "", whole.read_text(), flags=re.M))
    assert "not in the image: cryptography" in run(less).stderr


def test_secrets_and_clutter_stay_out_of_the_build_context() -> None:
    ignored = (DEPLOY.parent / ".dockerignore").read_text().split()
    for entry in (".git", ".venv*", "**/*.key", "**/*.pem", "**/*.gguf", "tests", "**/__pycache__"):
        assert entry in ignored


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return loaded


class TestCompose:
    def test_every_service_is_hardened(self, compose: dict[str, Any]) -> None:
        for name, service in compose["services"].items():
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
            assert not service.get("privileged"), name
            assert service.get("user", "10001").split(":")[0] != "0", name

    def test_only_loopback_ports_are_published(self, compose: dict[str, Any]) -> None:
        published = [port for service in compose["services"].values() for port in service.get("ports", [])]
        assert published
        assert all(port.startswith("127.0.0.1:") for port in published)
        assert "ports" not in compose["services"]["redis"]

    def test_each_program_sees_only_its_own_secrets(self, compose: dict[str, Any]) -> None:
        for name, service in compose["services"].items():
            mounts = [
                mount for mount in service.get("volumes", []) if "secrets" in mount or mount.startswith("ca:")
            ]
            if name == "certs":
                continue
            assert mounts == ([] if name == "redis" else [f"{name}-secrets:/etc/tidegate/secrets:ro"]), name

    def test_files_and_volumes_exist(self, compose: dict[str, Any]) -> None:
        for service in compose["services"].values():
            for mount in service.get("volumes", []):
                source = mount.split(":")[0]
                if source.startswith("."):
                    assert (DEPLOY / "compose" / source).is_file(), mount
                else:
                    assert source in compose["volumes"], mount
            if "build" in service:
                context = (DEPLOY / "compose" / service["build"]["context"]).resolve()
                assert (context / service["build"]["dockerfile"]).is_file()
            assert set(service.get("networks", [])) <= set(compose["networks"])

    @pytest.mark.parametrize("program", PROGRAMS)
    def test_environment_is_accepted_over_the_file(self, compose: dict[str, Any], program: str) -> None:
        environment = {
            name: str(value) for name, value in compose["services"][program]["environment"].items()
        }
        settings = load_settings(PROGRAMS[program], DEPLOY / "config" / f"{program}.toml", environment)
        listen = {"gateway": "http", "edge": "local_api", "cloud": "admin"}[program]
        listener = getattr(settings, listen)
        assert listener.host == "0.0.0.0"
        assert listener.tls.cert_file == Path(SECRETS + "tls.crt")
        assert environment["HEALTH_URL"] == f"https://127.0.0.1:{listener.port}/healthz"

    def test_programs_wait_for_their_keys(self, compose: dict[str, Any]) -> None:
        for program in PROGRAMS:
            condition = compose["services"][program]["depends_on"]["certs"]["condition"]
            assert condition == "service_completed_successfully"


@pytest.mark.parametrize(("program", "settings"), PROGRAMS.items())
def test_example_settings_load(program: str, settings: type[ProgramSettings]) -> None:
    load_settings(settings, DEPLOY / "config" / f"{program}.toml", {})


def test_restricted_data_stays_on_owned_devices() -> None:
    settings = load_settings(GatewaySettings, DEPLOY / "config" / "gateway.toml", {})
    (rule,) = (rule for rule in settings.data_classes if rule.name == "restricted")
    allowed = [node for node in settings.nodes if node.tier in rule.tiers and node.trust in rule.trust]
    assert [node.tier for node in allowed] == ["edge"]


def test_prometheus_scrapes_every_program_with_its_key() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    ports = {"tidegate-gateway": 8080, "tidegate-edge": 11435, "tidegate-cloud": 8081}
    assert set(jobs) == set(ports)
    for name, job in jobs.items():
        assert job["scheme"] == "https"
        assert job["authorization"]["credentials_file"].startswith(SECRETS)
        assert job["static_configs"][0]["targets"] == [f"{name.removeprefix('tidegate-')}:{ports[name]}"]


class TestUnit:
    TEXT = (DEPLOY / "systemd" / "tidegate-edge.service").read_text()

    @pytest.mark.parametrize(
        "line",
        [
            "Restart=always",
            "StartLimitIntervalSec=0",
            "DynamicUser=yes",
            "StateDirectory=tidegate",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "MemoryMax=80%",
            "OOMPolicy=continue",
            "CapabilityBoundingSet=",
            "ExecStart=/opt/tidegate/bin/tidegate-edge --config /etc/tidegate/edge.toml",
        ],
    )
    def test_says(self, line: str) -> None:
        assert line in self.TEXT.splitlines()

    def test_credentials_match_the_settings(self) -> None:
        """The unit overrides every secret's path of edge.toml with a credential that it loads."""
        names = re.findall(r"^Environment=(TIDEGATE_EDGE__LINK\w+)=%d/([\w.-]+)$", self.TEXT, re.M)
        loaded = re.findall(r"^LoadCredential=([\w.-]+):/etc/tidegate/secrets/([\w.-]+)$", self.TEXT, re.M)
        assert {credential for _, credential in names} == {credential for credential, _ in loaded}
        environment = {variable: f"/run/{credential}" for variable, credential in names}
        settings = load_settings(EdgeSettings, DEPLOY / "config" / "edge.toml", environment)
        assert SECRETS not in settings.link.model_dump_json()

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
    def test_systemd_understands_it(self, tmp_path: Path) -> None:
        """Its exit status is 0 on unknown keys too, so what counts is that it says nothing."""

        def complaints(text: str) -> str:
            unit = tmp_path / "tidegate-edge.service"
            unit.write_text(text.replace("/opt/tidegate/bin/tidegate-edge", "/bin/true"))
            verified = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
            )
            lines = (verified.stdout + verified.stderr).splitlines()
            return "\n".join(line for line in lines if "tidegate-edge" in line)

        assert complaints(self.TEXT) == ""
        assert "ProtectSistem" in complaints(self.TEXT.replace("ProtectSystem", "ProtectSistem"))
