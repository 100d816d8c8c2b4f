"""The parent's side without a child: frames, ledger, cache view, settings, environment."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from serving.engines.base import EngineRefused
from serving.engines.llama_cpp import protocol
from serving.engines.llama_cpp.admission import input_text
from serving.engines.llama_cpp.cache_view import CacheView
from serving.engines.llama_cpp.identity import hardware_class, replay_digest
from serving.engines.llama_cpp.ledger import Ledger
from serving.engines.llama_cpp.process import child_environment
from serving.engines.llama_cpp.protocol import Emission, LoadState, ProtocolError
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import (
    AttemptKey,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    Sampling,
    Usage,
    Work,
)

NAME = bytes(range(16))


def work(number: int = 1, **changes: object) -> Work:
    values: dict[str, object] = {
        "key": AttemptKey(f"r{number}", 2),
        "tenant": "t",
        "variant_digest": "d",
        "input_kind": InputKind.TEXT,
        "input": "héllo".encode(),
        "sampling": Sampling(temperature=0.5, seed=3),
        "max_tokens": 8,
    }
    return Work(**(values | changes))  # type: ignore[arg-type]


def test_work_survives_the_frame() -> None:
    original = work(
        stop=("a", "b"),
        prefix_hashes=(NAME,),
        remaining_ms=1000.0,
        ttft_remaining_ms=None,
        priority=3,
        start_index=2,
        replay_token_ids=(5, 6),
    )
    frame = protocol.decode(protocol.encode(protocol.pack_work(7, original, "héllo", 100.0))[4:])
    again = protocol.unpack_work(frame)
    assert (again.remaining_ms, frame["waited_ms"]) == (1000.0, 100.0)
    assert (again.input, again.sampling, again.stop) == (original.input, original.sampling, original.stop)
    assert (again.prefix_hashes, again.replay_token_ids) == ((NAME,), (5, 6))
    assert (frame["sid"], again.priority, again.start_index) == (7, 3, 2)


@pytest.mark.parametrize(
    "emission",
    [
        Emission(1, 0, (4, 5), "ab", FirstToken(1.0, 2.0, 3, 4, 5)),
        Emission(1, 9, (), "", None, Finish(FinishReason.STOP, Usage(1, 2, 3))),
        Emission(1, 9, finish=Finish(Failure(Cause.DEADLINE, "late"), Usage(1, 0, 0))),
    ],
)
def test_emissions_survive_the_frame(emission: Emission) -> None:
    frame = protocol.decode(protocol.encode({"t": "x", "e": protocol.pack_emission(emission)})[4:])
    output = protocol.unpack_emission(frame["e"], AttemptKey("r", 1))
    assert output.token_ids == emission.token_ids
    assert output.count == len(emission.token_ids)
    assert (output.first_index, output.text) == (emission.first_index, emission.text)
    assert (output.first_token, output.finish) == (emission.first_token, emission.finish)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}", b'{"t": 3}', b"\xff", b"[" * 100, b"[" * 200_000])
def test_what_is_no_frame_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(body)


def test_a_huge_frame_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.body_length(b"\xff\xff\xff\xff")


def test_frames_over_a_socket_until_it_closes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(protocol.encode({"t": "a"}) + protocol.encode({"t": "b"})[:-1])
        assert protocol.receive(theirs) == {"t": "a"}
        ours.close()
        assert protocol.receive(theirs) is None


def test_ledger_counts_a_cancelled_sequence_until_the_child_confirms() -> None:
    ledger = Ledger()
    first, second = ledger.add(work(1), "", 0.0), ledger.add(work(2), "", 0.0)
    first.sent = True
    assert ledger.cancel(first.work.key) is first
    assert ledger.cancel(second.work.key) is second
    assert ledger.cancel(second.work.key) is None
    assert (len(ledger), ledger.occupied) == (0, 1)
    ledger.freed(first.sid)
    assert ledger.occupied == 0


def test_ledger_estimates_what_the_child_has_not_reported() -> None:
    ledger = Ledger()
    ledger.add(work(1, input=b"x" * 400), "", 0.0)
    ledger.add(work(2, input=b"x" * 40), "", 0.0)
    ledger.reported = LoadState(seen=1)
    assert ledger.unseen_tokens() == (1, 11, 8)


def test_ledger_fails_everything_at_its_next_index() -> None:
    ledger = Ledger()
    entry = ledger.add(work(1, start_index=4), "", 0.0)
    entry.next_index = 9
    (output,) = ledger.fail_all(Failure(Cause.ENGINE_HUNG, "x"))
    assert (output.key, output.first_index, output.count) == (entry.work.key, 9, 0)
    assert output.finish == Finish(Failure(Cause.ENGINE_HUNG, "x"))
    assert entry.work.key not in ledger
    assert ledger.fail_all(Failure(Cause.ENGINE_HUNG)) == ()


def test_cache_view_reports_net_changes() -> None:
    view = CacheView()
    a, b, c = b"a" * 16, b"b" * 16, b"c" * 16
    view.change([a, b], [])
    first = view.take_changes()
    assert first is not None
    assert (first.held, first.evicted) == ((a, b), ())
    view.change([c], [a])
    view.change([], [c])
    second = view.take_changes()
    assert second is not None
    assert (second.held, second.evicted) == ((), (a,))
    assert view.take_changes() is None
    assert (view.full().held, view.full().full) == ((b,), True)
    assert view.full().digest == second.digest
    view.clear()
    last = view.take_changes()
    assert last is not None
    assert (last.evicted, last.digest) == ((b,), 0)


def test_the_child_gets_no_secrets_of_the_daemon() -> None:
    environ = {
        "PATH": "/bin",
        "TIDEGATE_EDGE__TOKEN": "s",
        "AWS_SECRET": "s",
        "OMP_NUM_THREADS": "1",
    }
    child = child_environment(environ, bounded_spin=True)
    assert child == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "GGML_NO_BACKTRACE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": "1000",
    }
    assert "GOMP_SPINCOUNT" not in child_environment(environ, bounded_spin=False)


def test_settings_are_checked(tmp_path: object) -> None:
    with pytest.raises(ValidationError):
        LlamaCppSettings(model_path="m.gguf", model="m", slots=65)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        LlamaCppSettings(model_path="m.gguf", model="m", threds=2)  # type: ignore[call-arg, arg-type]
    config = LlamaCppSettings(model_path="m.gguf", model="m", slots=64, n_batch=32).child_config()  # type: ignore[arg-type]
    assert config.n_batch >= 64 + 16
    assert config.threads == 1


def test_replay_digest_changes_with_each_part() -> None:
    parts = ("digest", "build", "f16", "template")
    digests = {replay_digest(*parts)}
    for number in range(4):
        changed = list(parts)
        changed[number] += "x"
        digests.add(replay_digest(*changed))
    assert len(digests) == 5


def test_hardware_class_names_threads_and_gpu() -> None:
    assert hardware_class(3).endswith("/3t")
    assert hardware_class(1, ["NVIDIA  L4", "NVIDIA L4"]).endswith("/1t+NVIDIA L4+NVIDIA L4")
    assert len(hardware_class(1, ["GPU"] * 100)) == 256


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(temperature=float("nan"))},
        {"sampling": Sampling(temperature=-1.0)},
        {"sampling": Sampling(top_p=1.5)},
        {"sampling": Sampling(min_p=float("inf"))},
        {"sampling": Sampling(repeat_penalty=0.0)},
        {"sampling": Sampling(frequency_penalty=float("-inf"))},
        {"stop": ("x",) * 65},
        {"stop": ("x" * 1025,)},
        {"input": b"x" * (16 * 1024 * 1024 + 1)},
        {"input": b"\xff\xfe"},
    ],
)
def test_what_native_code_must_not_see_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EngineRefused) as refused:
        input_text(work(**changes))
    assert refused.value.failure.cause is Cause.INVALID_INPUT


def test_extreme_but_allowed_numbers_pass() -> None:
    extreme = Sampling(temperature=0.0, top_p=0.0, top_k=-1, min_p=1.0, repeat_penalty=100.0, seed=-(1 << 80))
    assert input_text(work(sampling=extreme, stop=("",))) == "héllo"
