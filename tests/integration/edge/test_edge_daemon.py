"""The real daemon as a process, with the oracle engine and without any gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from edge_daemon_process import DaemonMaker

FAST = {"ENGINE__ORACLE__PACING": "0"}
SLOW = {"ENGINE__ORACLE__PACING": "1"}


def test_answers_without_any_gateway(daemons: DaemonMaker) -> None:
    daemon = daemons.start(FAST | {"ENGINE__MODEL_NAME": "tiny"})
    answer = daemon.chat(max_tokens=5)
    assert answer.status == 200
    assert answer.json["usage"]["completion_tokens"] == 5
    assert answer.json["choices"][0]["message"]["content"]
    assert daemon.ask("/v1/models").json["data"][0]["id"] == "tiny"
    assert daemon.ask("/readyz").json == {"status": "ready"}
    assert b"\ntidegate_node_ready 1.0\n" in daemon.ask("/metrics").body


def test_only_this_machine_may_ask(daemons: DaemonMaker) -> None:
    daemon = daemons.start(FAST | {"LOCAL_API__ALLOWED_HOSTS": "box.lan"})
    assert daemon.ask("/v1/models", headers={"Host": "evil.example"}).status == 403
    assert daemon.ask("/metrics", headers={"Host": "evil.example"}).status == 403
    assert daemon.ask("/v1/models", headers={"Origin": "https://evil.example"}).status == 403
    for headers in ({"Host": "box.lan:1"}, {"Host": "localhost"}, {"Origin": "http://localhost:3000"}):
        assert daemon.ask("/v1/models", headers=headers).status == 200


def test_api_is_up_while_the_engine_loads_and_stops_there(daemons: DaemonMaker) -> None:
    daemon = daemons.start(SLOW | {"ENGINE__ORACLE__LOAD_S": "600"}, ready=False)
    assert daemon.ask("/healthz").status == 200
    not_ready = daemon.ask("/readyz")
    assert (not_ready.status, not_ready.json["reason"]) == (503, "loading")
    early = daemon.chat()
    assert early.status == 503
    assert early.json["error"]["code"] == "engine_loading"
    assert early.headers["Retry-After"] == "1"
    assert daemon.ask("/v1/models").status == 503
    assert b"\ntidegate_node_ready 0.0\n" in daemon.ask("/metrics").body
    code, took_s = daemon.stop()
    assert code == 0
    assert took_s < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_answers_finish_before_the_end(daemons: DaemonMaker, number: signal.Signals) -> None:
    daemon = daemons.start(SLOW | {"ENGINE__ORACLE__DECODE": "[[1, 20]]"})
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        stream_chat(client, max_tokens=20)  # a second at 20 tokens/s
        received = client.recv(1024)
        os.kill(daemon.process.pid, number)
        received += read_all(client)
    assert received.count(b'"content":"t') == 20
    assert b"data: [DONE]" in received
    assert daemon.process.wait(5) == 0


def test_work_beyond_the_grace_is_cut_off_with_an_error(daemons: DaemonMaker) -> None:
    daemon = daemons.start(SLOW | {"DRAIN_GRACE_S": "0.3"})
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        stream_chat(client, max_tokens=1500)  # half a minute
        received = client.recv(1024)
        began = time.monotonic()
        daemon.process.terminate()
        received += read_all(client)
    assert b'"error"' in received
    assert b"[DONE]" not in received
    assert daemon.process.wait(5) == 0
    assert time.monotonic() - began < 5


def stream_chat(client: socket.socket, max_tokens: int) -> None:
    """Sends a streaming request by hand, so that the connection is the test's to read."""
    client.settimeout(10)
    body = json.dumps(
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": max_tokens, "stream": True}
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def test_second_daemon_on_the_same_port_says_so_in_one_line(daemons: DaemonMaker, tmp_path: Path) -> None:
    first = daemons.start(FAST)
    second = daemons.spawn({"LOCAL_API__PORT": str(first.port), "STATE_DIR": str(tmp_path / "other")})
    _, told = second.process.communicate(timeout=20)
    assert second.process.returncode == 1
    assert told.count("\n") == 1
    assert f"127.0.0.1:{first.port} is in use" in told
    assert "TIDEGATE_EDGE__LOCAL_API__PORT" in told
    assert first.chat().status == 200


def test_second_daemon_with_the_same_identity_says_so_in_one_line(daemons: DaemonMaker) -> None:
    first = daemons.start(FAST)
    second = daemons.spawn()
    _, told = second.process.communicate(timeout=20)
    assert second.process.returncode == 1
    assert told.count("\n") == 1
    assert "is in use by a running node" in told
    assert first.chat().status == 200


def test_identity_outlives_the_process(daemons: DaemonMaker) -> None:
    seen = []
    for _ in range(2):
        daemon = daemons.start(FAST)
        seen.append(daemon.lines[-1]["node_id"])
        assert daemon.stop()[0] == 0
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        ({"LOCAL_API__HOST": "0.0.0.0"}, 1, "refusing to listen on 0.0.0.0 without TLS and keys"),
        ({"LINK__GATEWAYS": "192.0.2.1:50052"}, 1, "refusing a plain link to 192.0.2.1:50052"),
        ({"LOCAL_API__PROT": "1"}, 2, 'local_api.prot: unknown key, did you mean "port"?'),
        ({"ENGINE__KIND": "llama_cpp", "ENGINE__MODEL": "/none.gguf"}, 2, "there is no file /none.gguf"),
        ({"LINK__GATEWAYS": "[::1]:1", "LINK__JOIN_TOKEN__ENV": "NO_SUCH"}, 2, "NO_SUCH holds no secret"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    daemons: DaemonMaker, settings: dict[str, str], code: int, told: str
) -> None:
    daemon = daemons.spawn(settings)
    _, lines = daemon.process.communicate(timeout=20)
    assert daemon.process.returncode == code
    complaints = [line for line in lines.splitlines() if not line.startswith("{")]
    assert len(complaints) == 1
    assert complaints[0].startswith("tidegate-edge: ")
    assert told in complaints[0]


def test_keys_close_the_api(daemons: DaemonMaker, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame\n")
    key.chmod(0o600)
    daemon = daemons.start(
        FAST
        | {"LOCAL_API__KEYS": json.dumps([{"secret": {"file": str(key)}}]), "LOCAL_API__HOST": "0.0.0.0"},
        "--insecure",
    )
    assert daemon.chat().status == 401
    opened = {"Authorization": "Bearer sesame"}
    assert daemon.ask("/v1/models", headers=opened).status == 200
    assert daemon.ask("/v1/models", headers={"Authorization": "Bearer sesam"}).status == 401
    assert daemon.ask("/metrics", headers=opened).status == 403  # not an admin's key
    assert daemon.ask("/healthz").status == 200
    assert "sesame" not in json.dumps(daemon.lines)


def test_a_gateway_that_is_not_there_disturbs_nobody(daemons: DaemonMaker) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        daemon = daemons.start(FAST | {"LINK__GATEWAYS": f"127.0.0.1:{nobody.getsockname()[1]}"})
        assert daemon.wait_for("link lost")["retry_s"] > 0
        assert daemon.chat().status == 200
        assert b"\ntidegate_node_links_configured 1.0\n" in daemon.ask("/metrics").body
        code, took_s = daemon.stop()
    assert code == 0
    assert took_s < 5


def test_daemon_without_its_engine_is_small(daemons: DaemonMaker) -> None:
    daemons.is_measured = True
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        daemon = daemons.start(FAST | {"LINK__GATEWAYS": f"127.0.0.1:{nobody.getsockname()[1]}"})
        daemon.wait_for("link lost")
        assert daemon.chat().status == 200
        assert daemon.ask("/metrics").status == 200
        assert psutil.Process(daemon.process.pid).memory_info().rss < 80_000_000
