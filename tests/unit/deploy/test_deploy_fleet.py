"""The example settings and the generated keys make a fleet of real programs, which refuses strangers."""

import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# make-certs.sh runs in images, which have it; a bare machine may not.
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SECRETS = "/etc/tidegate/secrets/"
READY_WITHIN_S = 30.0
ORACLE = {"ENGINE__KIND": "oracle", "ENGINE__ORACLE__PACING": "0"}


def make_certs(folder: Path, *names: str) -> str:
    command = ["sh", str(DEPLOY / "compose" / "make-certs.sh"), str(folder), *names]
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert made.returncode == 0, made.stderr
    return made.stdout


class TestMakeCerts:
    def test_second_run_changes_nothing(self, tmp_path: Path) -> None:
        def content() -> dict[Path, bytes]:
            return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

        assert make_certs(tmp_path).count("made a certificate") == 3
        first = content()
        assert make_certs(tmp_path) == ""
        assert content() == first

    def test_new_name_makes_a_new_certificate_under_the_same_ca(self, tmp_path: Path) -> None:
        make_certs(tmp_path)
        authority = (tmp_path / "ca" / "ca.crt").read_bytes()
        token = (tmp_path / "edge" / "join-token").read_bytes()
        assert make_certs(tmp_path, "gateway", "gw.example", "10.1.2.3") == "made a certificate for gateway\n"
        assert (tmp_path / "ca" / "ca.crt").read_bytes() == authority
        assert (tmp_path / "edge" / "join-token").read_bytes() == token
        certificate = str(tmp_path / "gateway" / "tls.crt")
        names = subprocess.run(
            ["openssl", "x509", "-in", certificate, "-noout", "-ext", "subjectAltName"],
            capture_output=True,
            text=True,
        ).stdout
        assert "DNS:gw.example, IP Address:10.1.2.3" in names

    def test_nobody_else_may_read_and_nobody_has_too_much(self, tmp_path: Path) -> None:
        make_certs(tmp_path)
        for path in tmp_path.rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert [path.parent.name for path in tmp_path.rglob("ca.key")] == ["ca"]
        assert not list((tmp_path / "edge").glob("*cloud*"))
        secrets = [
            (tmp_path / "gateway" / name).read_text() for name in ("api-key", "admin-key", "join-token-edge")
        ]
        assert len({len(secret.strip()) for secret in secrets}) == 1
        assert len(set(secrets)) == 3


@dataclass(frozen=True)
class Fleet:
    http: int
    link: int
    edge: int
    certs: Path

    def secret(self, name: str) -> str:
        return (self.certs / name).read_text().strip()

    def call(
        self, port: int, path: str, key: str | None, body: dict[str, Any] | None = None, **headers: str
    ) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"https://localhost:{port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        if key is not None:
            request.add_header("Authorization", f"Bearer {self.secret(key)}")
        context = ssl.create_default_context(cafile=str(self.certs / "client" / "ca.crt"))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


class Programs:
    """Started programs, each in a session of its own; all are ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, settings: dict[str, str], ready: str) -> dict[str, Any]:
        """Starts it on deploy/config with the made secrets; returns the log record that says `ready`."""
        text = (DEPLOY / "config" / f"{program}.toml").read_text()
        config = self.folder / f"{program}.toml"
        config.write_text(text.replace(SECRETS, f"{self.folder}/certs/{program}/"))
        prefix = f"TIDEGATE_{program.upper()}__"
        environment = {**os.environ, **{f"{prefix}{name}": value for name, value in settings.items()}}
        log = self.folder / f"{program}.log"
        with log.open("wb") as sink:
            child = subprocess.Popen(
                [str(Path(sys.executable).parent / f"tidegate-{program}"), "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
        self.running.append(child)
        limit = time.monotonic() + READY_WITHIN_S
        while True:
            records = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
            for record in records:
                if record["msg"] == ready:
                    return dict(record)
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        for child in reversed(self.running):
            child.send_signal(signal.SIGTERM)
        for child in self.running:
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    certs = folder / "certs"
    make_certs(certs)
    programs = Programs(folder)
    try:
        free = {f"{listener}__PORT": "0" for listener in ("GRPC", "LINK", "HTTP")}
        # Nobody listens there: a gateway must serve without its Redis.
        up = programs.start("gateway", {**free, "STORE__URL": "redis://127.0.0.1:1/0"}, "gateway is up")
        link = {"LINK__GATEWAYS": f"127.0.0.1:{up['link']}"}
        api = {
            "LOCAL_API__PORT": "0",
            "LOCAL_API__HOST": "0.0.0.0",
            "LOCAL_API__TLS__CERT_FILE": f"{certs}/edge/tls.crt",
            "LOCAL_API__TLS__KEY_FILE": f"{certs}/edge/tls.key",
            "LOCAL_API__KEYS": json.dumps([{"secret": {"file": f"{certs}/edge/api-key"}}]),
        }
        named = {"ENGINE__MODEL_NAME": "small", "STATE_DIR": f"{folder}/edge"}
        edge = programs.start("edge", {**ORACLE, **link, **api, **named}, "local API is up")
        big = {"ENGINE__MODEL_NAME": "big", "STATE_DIR": f"{folder}/cloud", "ADMIN__PORT": "0"}
        programs.start("cloud", {**ORACLE, **link, **big}, "engine ready")
        made = Fleet(up["http"], up["link"], int(edge["address"].rpartition(":")[2]), certs)
        limit = time.monotonic() + READY_WITHIN_S
        while not {"small", "big"} <= models(made):
            assert time.monotonic() < limit, f"the nodes did not join: {models(made)}"
            time.sleep(0.1)
        yield made
    finally:
        programs.stop()


def models(fleet: Fleet) -> set[str]:
    status, body = fleet.call(fleet.http, "/v1/models", "client/api-key")
    assert status == 200, body
    return {entry["id"] for entry in json.loads(body)["data"]}


def ask(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def test_both_tiers_serve(fleet: Fleet) -> None:
    for model in ("small", "big"):
        status, body = fleet.call(fleet.http, "/v1/chat/completions", "client/api-key", ask(model))
        assert status == 200, body
        assert json.loads(body)["usage"]["completion_tokens"] == 4


def test_device_serves_by_itself(fleet: Fleet) -> None:
    status, body = fleet.call(fleet.edge, "/v1/chat/completions", "client/edge-api-key", ask("small"))
    assert status == 200, body
    assert fleet.call(fleet.edge, "/v1/models", None)[0] == 401


def test_restricted_data_never_goes_to_the_cloud(fleet: Fleet) -> None:
    restricted = {"x-tidegate-data-class": "restricted"}
    path = "/v1/chat/completions"
    assert fleet.call(fleet.http, path, "client/api-key", ask("small"), **restricted)[0] == 200
    status, body = fleet.call(fleet.http, path, "client/api-key", ask("big"), **restricted)
    assert status != 200, body


def test_keys_are_asked_for(fleet: Fleet) -> None:
    assert fleet.call(fleet.http, "/v1/models", None)[0] == 401
    assert fleet.call(fleet.http, "/metrics", "client/api-key")[0] in (401, 403)
    status, metrics = fleet.call(fleet.http, "/metrics", "prometheus/admin-key")
    assert status == 200
    assert "tidegate_" in metrics


def test_link_wants_a_certificate_of_our_ca(fleet: Fleet) -> None:
    assert is_greeted(fleet, fleet.certs / "edge")
    assert not is_greeted(fleet, None)


def is_greeted(fleet: Fleet, identity: Path | None) -> bool:
    """Whether the link listener answers HTTP/2 to somebody with this certificate, or with none."""
    context = ssl.create_default_context(cafile=str(fleet.certs / "client" / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    if identity is not None:
        context.load_cert_chain(identity / "tls.crt", identity / "tls.key")
    empty_settings_frame = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    with socket.create_connection(("127.0.0.1", fleet.link), 5) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secured:
                secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings_frame)
                return secured.recv(1) != b""
        except OSError:
            return False
