"""The simulator against arithmetic that can be done by hand, and against itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from simulator.__main__ import main
from simulator.fleet import FleetSpec, load_fleet, parse_fleet
from simulator.foresight import Foresight
from simulator.policies import POLICIES
from simulator.report import report
from simulator.run import Served, Simulation
from simulator.tables import BadInput
from simulator.trace import Recorded, draw, read_trace

NODE = {
    "name": "edge",
    "tier": "edge",
    "variant": "small",
    "slots": 2,
    "context_tokens": 8192,
    "prefill_tps": 1000.0,
    "prefill_chunk": 100,
    "decode_tps": [[1, 20.0], [2, 10.0]],
    "cache_tokens": 4096,
}
CLOUD = {**NODE, "name": "cloud", "tier": "cloud", "variant": "large", "slots": 8, "cost_per_mtoken": 1.0}
CLOUD["decode_tps"] = [[1, 50.0], [8, 40.0]]


EXAMPLE = Path(__file__).parents[3] / "examples" / "fleet.toml"


def fleet_of(*nodes: dict[str, object], **more: object) -> FleetSpec:
    slo = {"name": "all", "share": 1.0, "ttft_ms": 3000, "tpot_ms": 150, "total_ms": 60000}
    return parse_fleet({"version": 1, "node": list(nodes), "slo": [slo], **more})


def play(fleet: FleetSpec, trace: list[Recorded], policy: str, **more: bool) -> list[Served]:
    return Simulation(fleet, draw(trace, fleet, seed=3), policy, seed=3, **more).run()


def test_one_request_takes_its_prefill_and_its_steps() -> None:
    (served,) = play(fleet_of(NODE), [Recorded(0.0, 250, 5)], "round-robin")
    assert served.ttft_s == pytest.approx(0.25)
    assert served.total_s == pytest.approx(0.25 + 4 * 0.05)


def test_prefill_and_decode_share_one_loop() -> None:
    """The second one comes in the middle of a step of the first, and its two chunks for one step each."""
    first, second = play(fleet_of(NODE), [Recorded(0.0, 100, 20), Recorded(0.12, 200, 2)], "round-robin")
    # First token at 0.10, a step until 0.15, two steps of a chunk (0.1) beside a decode (0.05) until 0.45.
    assert second.ttft_s == pytest.approx(0.45 - 0.12)
    assert second.total_s == pytest.approx(0.55 - 0.12)
    # 1 + 1 + 2 + 1 tokens by 0.55; the other 15 alone again.
    assert first.total_s == pytest.approx(0.55 + 15 * 0.05)


def test_who_finds_no_slot_waits_for_one() -> None:
    trace = [Recorded(0.0, 10, 50), Recorded(0.0, 10, 50), Recorded(0.0, 10, 1)]
    served = play(fleet_of(NODE), trace, "always-edge")
    assert served[2].queue_s > 4.0
    assert served[2].ttft_s > served[0].ttft_s


def test_a_warm_prefix_is_not_computed_again() -> None:
    trace = [Recorded(0.0, 1024, 1, (1, 2)), Recorded(5.0, 1024, 1, (1, 2)), Recorded(9.0, 1024, 1, (8, 9))]
    served = play(fleet_of(NODE), trace, "tidegate")
    assert [s.cached for s in served] == [0, 1023, 0]


TRACE = [Recorded(i * 0.4, 60 + i * 37 % 700, 1 + i * 13 % 40, (i % 5, 100 + i)) for i in range(120)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_answers_and_the_same_seed_gives_the_same(policy: str) -> None:
    noisy = {"speed_noise": 0.2, "rtt_ms": [5.0, 1.0]}
    fleet = fleet_of({**NODE, "count": 2, **noisy}, {**CLOUD, **noisy}, gateways={"replicas": 2})
    once, again = (report(fleet, play(fleet, TRACE, policy), warm_up_per_node=0) for _ in range(2))
    assert once == again
    assert once["requests"] == len(TRACE)
    assert once["rejected"] == 0


def test_exact_meets_no_fewer_budgets_than_chance_and_pays_less_than_the_cloud() -> None:
    fleet = fleet_of({**NODE, "count": 2}, CLOUD)
    of = {
        p: report(fleet, play(fleet, TRACE, p), warm_up_per_node=0)
        for p in ("exact", "round-robin", "always-cloud")
    }
    assert of["exact"]["slo_attainment"] >= of["round-robin"]["slo_attainment"]
    assert of["exact"]["cost"] < of["always-cloud"]["cost"]


@pytest.mark.parametrize("kind", ["kill", "slow", "silent"])
@pytest.mark.parametrize("policy", ["tidegate", "load-per-slot"])
def test_a_failing_node_takes_no_request_with_it_that_has_no_token_yet(kind: str, policy: str) -> None:
    fault = {"at_s": 4.05, "for_s": 20.0, "kind": kind, "factor": 10.0}
    fleet = fleet_of({**NODE, "failures": [fault]}, {**NODE, "name": "other"})
    slowly = [r._replace(at_s=r.at_s * 5) for r in TRACE[:40]]
    served = play(fleet, slowly, policy)
    lost = sum(s.node is None for s in served)
    assert lost <= 2  # those that were being answered there
    healthy = play(fleet_of(NODE, {**NODE, "name": "other"}), slowly, policy)
    assert sum(s.total_s for s in served if s.node) > sum(s.total_s for s in healthy if s.node)


def test_many_alike_steps_are_as_single_steps() -> None:
    """Cutting stretches at every arrival must change no time: a far request that does nothing proves it."""
    plain = play(fleet_of(NODE), [Recorded(0.0, 950, 40)], "round-robin")
    spec = fleet_of(NODE)
    wide = replace(spec, nodes=(replace(spec.nodes[0], slots=1),))
    cut = play(
        wide, [Recorded(0.0, 950, 40), *[Recorded(0.2 + i / 10, 10, 1) for i in range(9)]], "round-robin"
    )
    assert cut[0].total_s == pytest.approx(plain[0].total_s)


@pytest.mark.parametrize("policy", ["exact", "min-ttft"])
def test_what_is_foreseen_once_is_as_if_foreseen_for_every_request(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under overload, with a node that fails: looking ahead from the node itself each time gives the same."""
    faults = [{"at_s": 5.0, "for_s": 6.0, "kind": kind, "factor": 3.0} for kind in ("slow", "kill")]
    noisy = {"speed_noise": 0.2, "rtt_ms": [5.0, 2.0]}
    fleet = fleet_of({**NODE, "count": 2, **noisy}, {**NODE, **noisy, "name": "failing", "failures": faults})
    fast = [r._replace(at_s=r.at_s / 2, blocks=()) for r in TRACE]
    kept = [(s.ttft_s, s.total_s) for s in play(fleet, fast, policy)]
    follow = Foresight._follow

    def anew(self: Foresight, now_s: float) -> None:
        self._state = None
        follow(self, now_s)

    monkeypatch.setattr(Foresight, "_follow", anew)
    assert [(s.ttft_s, s.total_s) for s in play(fleet, fast, policy)] == kept
    assert max(total_s for _, total_s in kept) > 20.0  # they did wait


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"decode_tps": 30}, "node edge: decode_tps must be a list"),
        ({"decode_tps": [30]}, "node edge: decode_tps must be two numbers in brackets"),
        ({"decode_tps": []}, r"node edge: decode_tps must be \[\["),
        ({"queue_limt": 4}, 'node edge: unknown key queue_limt, did you mean "queue_limit"?'),
        ({"slots": 0}, "node edge: slots must be a whole number of 1 or more"),
        ({"prefill_tps": "fast"}, "node edge: prefill_tps must be a number"),
        ({"tier": "moon"}, "node edge: tier must be one of edge, cloud"),
        ({"failures": [{"kind": "nap"}]}, "node edge: failures: kind must be one of kill, slow, silent"),
        ({"slots": ...}, "node edge: slots must be set"),
        ({"name": ...}, "node: name must be set"),
    ],
)
def test_what_is_wrong_with_a_node_is_named(node: dict[str, object], said: str) -> None:
    changed = {key: value for key, value in {**NODE, **node}.items() if value is not ...}
    with pytest.raises(BadInput, match=said.replace("?", "[?]")):
        fleet_of(changed)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({}, "version = 1"),
        ({"version": 1, "node": []}, "needs a node"),
        ({"version": 1}, "node must be set"),
        ({"version": 1, "node": [NODE], "nodes": []}, 'unknown key nodes, did you mean "node"'),
        ({"version": 1, "node": [NODE], "gateways": {"replicas": 0}}, "replicas must be a whole number of 1"),
        ({"version": 1, "node": [NODE], "slo": [{"name": "a"}]}, "slo a: share must be set"),
        ({"version": 1, "node": [NODE], "quality": {"ability": {"small": "x"}}}, "ability: small must be"),
    ],
)
def test_what_is_wrong_with_a_fleet_is_named(broken: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_fleet(broken)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("synthetic:-2:10", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:2:inf", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:2", None, "write synthetic:RATE:SECONDS"),
        ("synthetic:0.001:1", None, "no requests"),
        ("t.csv", None, "t.csv: No such file"),
        ("t.csv", "a,b\n1,2\n", "missing: TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n", "line 2: a date"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("t.jsonl", '{"timestamp": 1}\n', "line 1: input_length is missing"),
        ("t.jsonl", "[]\n", "line 1: JSON with timestamp"),
    ],
)
def test_what_is_wrong_with_a_trace_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=said):
        read_trace(name if text is None and ":" in name else str(tmp_path / name))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--limit", "0"), "--limit: must be a whole number of 1 or more"),
        (("--target-share", "3"), "--target-share: must be a number above 0 and below 1"),
        (("--rate", "nan"), "--rate: must be a number above 0"),
    ],
)
def test_wrong_options_are_named(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--trace", "synthetic:2:600", "--fleet", str(EXAMPLE), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "all 18 requests are warm-up, 200 for each of 10 nodes"),
        (("--plot", "/no/such/folder/x.png"), "--plot: there is no folder /no/such/folder"),
        (("--warm-up", "0", "--plot", "{}/x.nothing"), "--plot: Format"),
        (("--compare", "tidegate,luck"), "unknown policy luck"),
    ],
)
def test_what_cannot_be_played_is_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(tmp_path) for word in words]
    assert main(["--trace", "synthetic:2:5", "--fleet", str(EXAMPLE), *filled]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert lines[-1].startswith("tidegate simulate: ")


def test_the_program_prints_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        'version = 1\n[[node]]\nname = "e"\ntier = "edge"\nvariant = "v"\nslots = 4\ncontext_tokens = 8192\n'
        "prefill_tps = 600.0\nprefill_chunk = 512\ndecode_tps = [[1, 20.0]]\ncache_tokens = 0\n"
    )
    words = ["--trace", "synthetic:1:20", "--fleet", str(fleet), "--warm-up", "0", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == "tidegate"
    assert main(["--trace", str(tmp_path / "none.csv"), "--fleet", str(fleet)]) == 2


def test_the_example_is_a_fleet() -> None:
    assert {spec.tier.value for spec in load_fleet(EXAMPLE).nodes} == {"edge", "cloud"}
