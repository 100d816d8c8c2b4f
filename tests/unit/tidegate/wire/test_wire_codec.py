"""Domain values survive the wire both ways, and bad messages are refused with the field's name."""

from __future__ import annotations

import dataclasses

import pytest

from tidegate.common.v1 import common_pb2
from tidegate.gateway.v1 import gateway_pb2 as pb
from tidegate.routing.domain import (
    Accepted,
    Announcement,
    Binding,
    Budget,
    BudgetOutcome,
    Candidate,
    Chunk,
    Code,
    Explanation,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    Health,
    Message,
    NodeLoad,
    NodeState,
    OnMiss,
    Placement,
    Power,
    ReplayClass,
    Restarted,
    Role,
    Route,
    Sampling,
    ServeError,
    Speeds,
    Tier,
    Timings,
    Unit,
    Usage,
    Variant,
)
from tidegate.wire import codec, common, fleet

ROUTE = Route(
    node_id="n1",
    node_name="kitchen",
    tier=Tier.CLOUD,
    model="m",
    variant_digest="sha256:1",
    quantization="Q4_0",
    predicted_ttft_ms=1.5,
    predicted_ttft_p95_ms=2.5,
    predicted_tpot_ms=2.5,
    predicted_total_ms=3.5,
    p_meet=0.25,
    p_good=0.5,
    expected_cached_tokens=7,
    at_risk=True,
    why="because",
    certified=True,
)
EXPLANATION = Explanation(
    candidates=(Candidate(ROUTE, True, 0.5), Candidate(ROUTE, False, 1.5)),
    filtered={"model": 2, "health": 1},
    prompt_tokens=9,
    difficulty=0.75,
    decision_ms=0.25,
)
VARIANT = Variant(
    model="m",
    digest="sha256:1",
    quantization="Q8_0",
    context_tokens=4096,
    perplexity=11.5,
    capabilities=frozenset({"logprobs", "json_schema"}),
    aliases=("a", "b"),
    accuracy=0.75,
)
SPEEDS = Speeds(prefill_tokens_per_s=100.0, decode=((1, 30.0), (4, 20.0)), age_ms=5.0)
FULL = GenerateRequest(
    request_id="r-1.a:b_c",
    messages=(Message(Role.SYSTEM, "be brief"), Message(Role.USER, "grüße 👋", name="ann")),
    model="m",
    sampling=Sampling(0.0, 0.5, 0, 0.25, -1.0, 1.0, 1.25, 2**64 - 1, ((7, -2.0),), 2, 4.5, 0.25),
    max_tokens=12,
    stop=("a", "b"),
    budget=Budget(300.0, 20.0, 5000.0, 0.9),
    min_p_good=0.0,
    placement=Placement.EDGE,
    data_class="restricted",
    session_id="s",
    priority=-3,
    on_miss=OnMiss.REJECT,
    early_accept=True,
    explain=True,
    adapter="pirate",
)
PLAIN = GenerateRequest(request_id="r", prompt="once")


@pytest.mark.parametrize("request_", [FULL, PLAIN], ids=["full", "plain"])
def test_request_round_trip(request_: GenerateRequest) -> None:
    data = codec.encode_generate_request(request_).SerializeToString()
    assert codec.decode_generate_request(pb.GenerateRequest.FromString(data)) == request_


def test_tenant_and_deadline_do_not_travel() -> None:
    request = dataclasses.replace(PLAIN, tenant="secret-tenant", remaining_ms=5.0)
    message = codec.encode_generate_request(request)
    assert b"secret-tenant" not in message.SerializeToString()
    decoded = codec.decode_generate_request(message, tenant="t", remaining_ms=9.0)
    assert (decoded.tenant, decoded.remaining_ms) == ("t", 9.0)


def test_every_word_has_a_number_and_comes_back() -> None:
    for role in Role:
        assert common.decode_role(common.ROLES[role]) is role
    for unit in Unit:
        assert common.decode_unit(common.UNITS[unit]) is unit
    for reason in FinishReason:
        assert common.decode_finish_reason(common.FINISH_REASONS[reason]) is reason
    for tier in Tier:
        assert common.decode_tier(common.TIERS[tier]) is tier
    for replay in ReplayClass:
        assert common.decode_replay_class(common.REPLAY_CLASSES[replay]) is replay
    assert set(codec.PLACEMENTS) == set(Placement)
    assert set(codec.ON_MISS) == set(OnMiss)
    assert set(codec.OUTCOMES) == set(BudgetOutcome)
    assert set(fleet.HEALTHS) == set(Health)


def test_unset_words_mean_the_default() -> None:
    message = pb.GenerateRequest(request_id="r", prompt="p")
    request = codec.decode_generate_request(message)
    assert (request.placement, request.on_miss, request.model) == (
        Placement.ANY,
        OnMiss.BEST_EFFORT,
        "auto",
    )
    assert request.sampling == Sampling()
    assert request.budget == Budget()
    assert request.min_p_good is None
    assert common.decode_unit(0) is Unit.TOKEN
    assert common.decode_replay_class(0) is ReplayClass.NONE


def _request(**fields: object) -> pb.GenerateRequest:
    message = pb.GenerateRequest(request_id="r", prompt="p")
    message.MergeFrom(pb.GenerateRequest(**fields))  # type: ignore[arg-type]
    return message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (pb.GenerateRequest(request_id="r"), "input"),
        (pb.GenerateRequest(request_id="r", chat=pb.MessageList()), "input"),
        (pb.GenerateRequest(request_id="r", prompt=""), "prompt"),
        (pb.GenerateRequest(prompt="p"), "request_id"),
        (_request(request_id="a b"), "request_id"),
        (_request(request_id="a\n"), "request_id"),
        (_request(request_id="x" * 129), "request_id"),
        (_request(placement=99), "placement"),
        (_request(on_miss=99), "on_miss"),
        (_request(max_tokens=-1), "max_tokens"),
        (_request(priority=11), "priority"),
        (_request(min_p_good=1.5), "min_p_good"),
        (_request(min_p_good=float("nan")), "min_p_good"),
        (_request(stop=[""]), "stop[0]"),
        (_request(stop=["s"] * 17), "stop"),
        (_request(model="m" * 257), "model"),
        (_request(sampling=common_pb2.Sampling(temperature=2.5)), "sampling.temperature"),
        (_request(sampling=common_pb2.Sampling(temperature=float("nan"))), "sampling.temperature"),
        (_request(sampling=common_pb2.Sampling(top_p=0.0)), "sampling.top_p"),
        (_request(sampling=common_pb2.Sampling(top_k=-1)), "sampling.top_k"),
        (_request(sampling=common_pb2.Sampling(mirostat=3)), "sampling.mirostat"),
        (_request(sampling=common_pb2.Sampling(mirostat_tau=0.0)), "sampling.mirostat_tau"),
        (_request(sampling=common_pb2.Sampling(mirostat_eta=1.5)), "sampling.mirostat_eta"),
        (_request(budget=common_pb2.Budget(ttft_ms=0.0)), "budget.ttft_ms"),
        (_request(budget=common_pb2.Budget(total_ms=float("inf"))), "budget.total_ms"),
        (_request(budget=common_pb2.Budget(target_share=1.0)), "budget.target_share"),
        (
            pb.GenerateRequest(
                request_id="r", chat=pb.MessageList(messages=[common_pb2.Message(content="x")])
            ),
            "messages[0].role",
        ),
        (
            pb.GenerateRequest(
                request_id="r",
                chat=pb.MessageList(messages=[common_pb2.Message(role=42, content="x")]),  # type: ignore[arg-type]
            ),
            "messages[0].role",
        ),
    ],
)
def test_bad_requests_name_their_field(message: pb.GenerateRequest, param: str) -> None:
    with pytest.raises(ServeError) as caught:
        codec.decode_generate_request(message)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (dataclasses.replace(FULL, prompt="both"), "input"),
        (dataclasses.replace(PLAIN, prompt="\ud800"), "prompt"),
        (dataclasses.replace(FULL, messages=(Message(Role.USER, "x\udfff"),)), "messages[0].content"),
        (dataclasses.replace(PLAIN, sampling=Sampling(seed=-1)), "sampling.seed"),
        (dataclasses.replace(PLAIN, sampling=Sampling(seed=2**64)), "sampling.seed"),
        (dataclasses.replace(PLAIN, max_tokens=2**31), "max_tokens"),
    ],
)
def test_encoding_refuses_what_cannot_travel(request_: GenerateRequest, param: str) -> None:
    with pytest.raises(ServeError) as caught:
        codec.encode_generate_request(request_)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "event",
    [
        Accepted(ROUTE, EXPLANATION, "token"),
        Accepted(ROUTE),
        Chunk(attempt_no=2, first_index=3, count=2, text="é", token_ids=(5, 6), unit=Unit.DELTA),
        Restarted(attempt_no=2, cause="node_lost", route=ROUTE),
        Finished(
            FinishReason.LENGTH,
            Usage(1, 2, 3),
            Timings(1.5, 2.5, 3.5, 4.5, 5.5, 6),
            BudgetOutcome.MISSED,
            attempts=2,
        ),
    ],
    ids=lambda event: type(event).__name__,
)
def test_event_round_trip(event: GenerateEvent) -> None:
    data = codec.encode_event(event).SerializeToString()
    assert codec.decode_event(pb.GenerateResponse.FromString(data)) == event


def test_an_event_of_a_newer_protocol_is_skipped() -> None:
    assert codec.decode_event(pb.GenerateResponse()) is None
    unknown_field_9 = bytes([9 << 3 | 2, 0])
    assert codec.decode_event(pb.GenerateResponse.FromString(unknown_field_9)) is None


def test_variant_and_speeds_round_trip() -> None:
    assert common.decode_variant(common.encode_variant(VARIANT)) == VARIANT
    unmeasured = dataclasses.replace(VARIANT, perplexity=None, accuracy=None)
    assert common.decode_variant(common.encode_variant(unmeasured)) == unmeasured
    assert common.decode_speeds(common.encode_speeds(SPEEDS)) == SPEEDS
    with pytest.raises(ServeError) as caught:
        common.decode_variant(common_pb2.Variant(model="m", digest="d"))
    assert caught.value.param == "variant.context_tokens"


def test_fleet_round_trip() -> None:
    state = NodeState(
        announcement=Announcement(
            node_id="n1",
            boot_id="b",
            name="kitchen",
            variants=(VARIANT,),
            slots=4,
            queue_limit=8,
            build="x",
            replay_class=ReplayClass.TOKENS,
            replay_digest="d",
            hardware_class="cpu",
            speeds=SPEEDS,
        ),
        binding=Binding(tier=Tier.EDGE, region="home"),
        load=NodeLoad(running=1, queued=2),
        health=Health.DRAINING,
        rtt_ms=3.5,
        linked_here=False,
    )
    node = fleet.node_info(state, silent_ms=12.0)
    assert (node.tier, node.region, node.running, node.silent_ms) == (Tier.EDGE, "home", 1, 12.0)
    assert fleet.decode_node(fleet.encode_node(node)) == node
    power = Power(True, 0.5, None, 4.0, True)
    powered = dataclasses.replace(node, power=power, wake_ms=90.0, trouble="quarantine")
    assert fleet.decode_node(fleet.encode_node(powered)) == powered
    model = fleet.ModelInfo("m", ("a",), (VARIANT,), 3)
    assert fleet.decode_model(fleet.encode_model(model)) == model
    for decision in (
        fleet.Decision(ROUTE, EXPLANATION),
        fleet.Decision(None, EXPLANATION, refusal="too slow"),
    ):
        assert fleet.decode_decision(fleet.encode_decision(decision)) == decision
