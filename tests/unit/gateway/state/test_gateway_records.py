"""What replicas tell each other: it comes back as it was, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from gateway_fakes import CLOUD, VARIANT, announcement
from hypothesis import given
from hypothesis import strategies as st

from gateway.state.records import (
    NodeRecord,
    SessionRecord,
    decode_node,
    decode_session,
    encode_node,
    encode_session,
)
from tidegate.routing.domain import Health, NodeLoad, NodeState, Power, ReplayClass, Speeds, Variant

texts = st.text(max_size=20)
numbers = st.floats(min_value=0, max_value=1e9)
variants = st.builds(
    Variant,
    model=texts,
    digest=texts,
    quantization=texts,
    context_tokens=st.integers(1, 10**6),
    perplexity=st.none() | numbers,
    capabilities=st.frozensets(texts, max_size=3),
    aliases=st.lists(texts, max_size=3).map(tuple),
    accuracy=st.none() | st.floats(0.0, 1.0),
)
states = st.builds(
    lambda found, speeds, health, rtt_ms, load: NodeState(
        replace(announcement("n1"), variants=found, speeds=speeds, replay_class=ReplayClass.TEXT),
        CLOUD,
        load,
        health,
        rtt_ms,
        linked_here=False,
    ),
    st.lists(variants, max_size=3).map(tuple),
    st.builds(
        Speeds, numbers, st.lists(st.tuples(st.integers(1, 99), numbers), max_size=3).map(tuple), numbers
    ),
    st.sampled_from(Health),
    numbers,
    st.builds(
        NodeLoad,
        running=st.integers(0, 99),
        queued=st.integers(0, 99),
        draining=st.booleans(),
        usable_slots=st.integers(0, 99),
        trouble=st.sampled_from(["", "quarantine: it ended"]),
        wake_ms=numbers,
        power=st.none()
        | st.builds(Power, st.booleans(), *[st.none() | numbers for _ in range(3)], st.booleans()),
    ),
)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@given(state=states)
def test_a_node_comes_back_as_it_was(state: NodeState) -> None:
    assert decode_node(encode_node(NodeRecord("gw-1", state))) == NodeRecord("gw-1", state)


def test_speeds_are_those_of_the_last_heartbeat() -> None:
    measured = Speeds(777.0, ((1, 7.0),))
    state = NodeState(announcement("n1"), CLOUD, NodeLoad(speeds=measured), Health.READY, 1.0)
    assert decode_node(encode_node(NodeRecord("gw-1", state))).state.speeds == measured


COUNTS = st.integers(0, 10**6)


@given(st.builds(SessionRecord, texts, texts, texts, COUNTS, texts, texts, COUNTS))
def test_a_session_comes_back_as_it_was(record: SessionRecord) -> None:
    assert decode_session(encode_session(record)) == record


def test_a_session_of_a_replica_of_before_keeps_its_data_class() -> None:
    assert decode_session('["s", "n1", "d", 4, "restricted"]') == SessionRecord(
        "s", "n1", "d", 4, "restricted"
    )


@given(any_json)
def test_anything_else_is_a_value_error(value: object) -> None:
    text = json.dumps(value)
    with pytest.raises(ValueError):
        decode_node(text)
    with pytest.raises(ValueError):
        decode_session(text)


@pytest.mark.parametrize("text", ["", "{", "\ufffd\x00", "[" * 100_000, "Infinity", '{"v":1}', "[1,2,3,4,5]"])
def test_damage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        decode_node(text)
    with pytest.raises(ValueError):
        decode_session(text)


@given(key=st.sampled_from(sorted(json.loads(encode_node(NodeRecord("g", NodeState(
    announcement("n1"), CLOUD, NodeLoad(), Health.READY, 1.0)))))), value=any_json)  # fmt: skip
def test_a_record_with_one_wrong_field_is_refused_or_well_typed(key: str, value: object) -> None:
    good = NodeRecord("g", NodeState(announcement("n1"), CLOUD, NodeLoad(), Health.READY, 1.0))
    data = {**json.loads(encode_node(good)), key: value}
    try:
        state = decode_node(json.dumps(data)).state
    except ValueError:
        return
    hash((state.node_id, state.announcement.variants, state.binding, state.speeds))
    assert isinstance(state.node_id, str)
    assert state.rtt_ms < float("inf")


@pytest.mark.parametrize("perplexity", ["low", True, float("nan"), float("inf")])
def test_a_quality_that_is_no_number_is_refused(perplexity: object) -> None:
    good = NodeRecord(
        "g", NodeState(announcement("n1", variant=VARIANT), CLOUD, NodeLoad(), Health.READY, 1.0)
    )
    data = json.loads(encode_node(good))
    data["variants"][0]["perplexity"] = perplexity
    with pytest.raises(ValueError):
        decode_node(json.dumps(data))
