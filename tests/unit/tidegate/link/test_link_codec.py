"""Between the node protocol's messages and the domain's values: each comes back as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.link import codec
from tidegate.node.v1 import node_pb2
from tidegate.routing.domain import (
    Announcement,
    AttemptKey,
    CacheDelta,
    Cause,
    Failure,
    Finish,
    FinishReason,
    FirstToken,
    InputKind,
    NodeLoad,
    Power,
    ReplayClass,
    Sampling,
    SequenceOutput,
    ServeError,
    Speeds,
    Unit,
    Usage,
    Variant,
    Work,
)

# What a label may hold; the text of an answer is another matter.
# Python prints every letter, mark, number, punctuation mark and symbol, and of the rest only the plain space.
printable = st.characters(categories=["L", "M", "N", "P", "S"]) | st.just(" ")
texts = st.text(printable, max_size=12)
some_text = st.text(printable, min_size=1, max_size=12)
answers = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 2**31 - 1)
times = st.floats(0, 1e7)
wakes = st.floats(0, 3.6e6)
names = st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple)
keys = st.builds(AttemptKey, texts, counts)
usages = st.builds(Usage, counts, counts, counts)
speeds = st.builds(
    Speeds, times, st.lists(st.tuples(st.integers(1, 64), st.floats(0.01, 1e6)), max_size=3).map(tuple), times
)
# The gateway's own causes never come from a node.
node_causes = st.sampled_from([c for c in Cause if c not in (Cause.NODE_LOST, Cause.STALLED)])
failures = st.builds(Failure, node_causes, texts)
finishes = st.builds(Finish, st.sampled_from(FinishReason) | failures, usages)
outputs = st.builds(
    SequenceOutput,
    keys,
    counts,
    counts,
    st.lists(counts, max_size=3).map(tuple),
    answers,
    st.sampled_from(Unit),
    st.none() | st.builds(FirstToken, times, times, counts, counts, counts, wakes),
    st.none() | finishes,
    vectors=st.binary(max_size=16),
)
samplings = st.builds(
    Sampling,
    temperature=st.none() | st.sampled_from([0.0, 0.5, 2.0]),
    top_p=st.none() | st.sampled_from([0.25, 1.0]),
    top_k=st.none() | counts,
    seed=st.none() | st.integers(0, 2**64 - 1),
)
works = st.builds(
    Work,
    key=keys,
    tenant=texts,
    variant_digest=texts,
    input_kind=st.sampled_from(InputKind),
    input=st.binary(max_size=40),
    sampling=samplings,
    max_tokens=counts,
    stop=st.lists(texts, max_size=3).map(tuple),
    prefix_hashes=names,
    remaining_ms=st.none() | st.floats(0.001, 1e9),
    ttft_remaining_ms=st.none() | st.floats(0.001, 1e9),
    priority=st.integers(-10, 10),
    credits=st.integers(1, 1000),
    start_index=counts,
    replay_token_ids=st.lists(counts, max_size=3).map(tuple),
    detach_grace_ms=times,
    work_seq=counts,
    adapter=texts,
    data_class=texts,
)
variants = st.builds(
    Variant,
    model=some_text,
    digest=some_text,
    quantization=texts,
    context_tokens=st.integers(1, 2**31 - 1),
    perplexity=st.none() | st.floats(1.0, 1e6),
    capabilities=st.frozensets(texts, max_size=3),
    aliases=st.lists(texts, max_size=2).map(tuple),
    accuracy=st.none() | st.floats(0.0, 1.0),
)
announcements = st.builds(
    Announcement,
    node_id=some_text,
    boot_id=texts,
    name=some_text,
    variants=st.lists(variants, max_size=2).map(tuple),
    slots=st.integers(1, codec.MAX_SEQUENCES),
    queue_limit=st.integers(0, codec.MAX_SEQUENCES),
    build=texts,
    replay_class=st.sampled_from(ReplayClass),
    replay_digest=texts,
    hardware_class=texts,
    speeds=speeds,
    direct_endpoints=st.lists(texts, max_size=2).map(tuple),
)
shares = st.none() | st.floats(0.0, 1.0)
powers = st.builds(Power, st.booleans(), shares, shares, shares, st.booleans())
loads = st.builds(
    NodeLoad,
    running=counts,
    queued=counts,
    pending_prefill_tokens=counts,
    pending_decode_tokens=counts,
    free_cache_tokens=counts,
    last_work_seq=counts,
    ready=st.booleans(),
    progress_age_ms=times,
    draining=st.booleans(),
    speeds=st.none() | speeds,
    power=st.none() | powers,
    wake_ms=wakes,
    trouble=st.sampled_from(["", "quarantine: it ended"]),
    pinned_tokens=counts,
    usable_slots=st.integers(0, codec.MAX_SEQUENCES),
)


@given(announcements)
def test_an_announcement_comes_back(value: Announcement) -> None:
    pb = codec.register_to_pb(value, link_epoch=7, join_token="t")
    again = node_pb2.Register.FromString(pb.SerializeToString())
    assert codec.register_from_pb(again) == value
    assert (again.link_epoch, again.join_token, again.protocol_version) == (7, "t", codec.PROTOCOL_VERSION)


@given(loads)
def test_a_load_comes_back(value: NodeLoad) -> None:
    assert (
        codec.load_from_pb(node_pb2.Heartbeat.FromString(codec.load_to_pb(value).SerializeToString()))
        == value
    )


@given(works, st.integers(0, 40))
def test_a_work_comes_back_with_its_first_fragment(value: Work, cut: int) -> None:
    pb = node_pb2.Work.FromString(codec.work_to_pb(value, value.input[:cut]).SerializeToString())
    assert pb.input_bytes == len(value.input)
    assert codec.work_from_pb(pb) == replace(
        value, input=value.input[:cut], sampling=codec.work_from_pb(pb).sampling
    )
    for name in ("temperature", "top_p", "top_k", "seed"):
        assert getattr(codec.work_from_pb(pb).sampling, name) == getattr(value.sampling, name)


@given(outputs)
def test_an_output_comes_back(value: SequenceOutput) -> None:
    again = node_pb2.SequenceOutput.FromString(codec.output_to_pb(value).SerializeToString())
    assert codec.output_from_pb(again) == value


@given(st.builds(CacheDelta, names, names, st.integers(0, 2**64 - 1), st.booleans()))
def test_a_cache_report_comes_back(value: CacheDelta) -> None:
    again = node_pb2.CacheReport.FromString(codec.cache_to_pb(value).SerializeToString())
    assert codec.cache_from_pb(again) == value


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_place_on_the_wire(cause: Cause) -> None:
    back = codec.failure_from_pb(codec.failure_to_pb(Failure(cause, "d")))
    own = cause in (Cause.NODE_LOST, Cause.STALLED)
    assert back == Failure(Cause.INTERNAL if own else cause, "d")


def test_values_of_a_newer_peer_are_taken_as_the_weakest() -> None:
    assert codec.failure_from_pb(node_pb2.Failure(cause=99)).cause is Cause.INTERNAL  # type: ignore[arg-type]
    register = node_pb2.Register(node_id="n" * 30, replay_class=99)  # type: ignore[arg-type]
    announcement = codec.register_from_pb(register)
    assert (announcement.replay_class, announcement.slots, announcement.name) == (
        ReplayClass.NONE,
        1,
        "n" * 12,
    )
    assert codec.output_from_pb(node_pb2.SequenceOutput(unit=99)).unit is Unit.TOKEN  # type: ignore[arg-type]
    assert codec.work_from_pb(node_pb2.Work()).credits == 1


def test_a_variant_that_serves_nothing_is_refused() -> None:
    pb = node_pb2.Register(node_id="n")
    pb.variants.add(model="m", digest="", context_tokens=10)
    with pytest.raises(ServeError):
        codec.register_from_pb(pb)


@pytest.mark.parametrize("name", ["node_id", "name", "build", "hardware_class", "boot_id", "replay_digest"])
def test_a_label_that_would_break_a_log_line_is_refused(name: str) -> None:
    with pytest.raises(ServeError):
        codec.register_from_pb(node_pb2.Register(**{"node_id": "n", name: "a\nb"}))


def test_numbers_no_proper_node_sends_are_made_sane() -> None:
    load = codec.load_from_pb(
        node_pb2.Heartbeat(running=-1, queued=-2, pending_prefill_tokens=-3, progress_age_ms=float("nan"))
    )
    assert (load.running, load.queued, load.pending_prefill_tokens, load.progress_age_ms) == (0, 0, 0, 0.0)
    failure = codec.failure_from_pb(node_pb2.Failure(detail="a\nb" + "x" * 10_000))
    assert failure.detail.startswith("a b")
    assert len(failure.detail) == codec.MAX_DETAIL_CHARS
