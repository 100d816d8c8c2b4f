"""The contract's own positive control: engines with one fault each, and the test that must catch it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from engine_contract import EngineContract, Recorder

from serving.engines.base import EngineInfo
from serving.engines.oracle import OracleEngine, OracleSettings
from tidegate.routing.domain import AttemptKey, FirstToken, SequenceOutput, StepBatch, Work

pytestmark = pytest.mark.looptime
SETTINGS = OracleSettings(slots=2, queue_limit=2, context_tokens=8192)


class Faulty(OracleEngine):
    """Each output passes `spoil` on its way out."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)

    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [output]

    async def steps(self) -> AsyncIterator[StepBatch]:
        async for batch in super().steps():
            spoilt = [part for output in batch.outputs for part in self.spoil(output)]
            yield StepBatch(tuple(spoilt))


class LosesAToken(Faulty):
    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [] if output.first_index == 3 else [output]


class DoublesAToken(Faulty):
    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [output, output] if output.first_index == 3 else [output]


class StampsTwice(Faulty):
    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [replace(output, first_token=FirstToken(0.0, 0.0, 0, 1, 1))]


class NeverFinishes(Faulty):
    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [replace(output, finish=None)]


class SplitsCharacters(Faulty):
    def spoil(self, output: SequenceOutput) -> list[SequenceOutput]:
        return [replace(output, text="\ufffd")]


class LeaksStopStrings(Faulty):
    def submit(self, work: Work) -> None:
        super().submit(replace(work, stop=()))


class NeverCancels(Faulty):
    def cancel(self, key: AttemptKey) -> None:
        """Goes on computing."""


class TakesEverything(Faulty):
    def __init__(self) -> None:
        OracleEngine.__init__(self, replace(SETTINGS, queue_limit=100))

    async def start(self) -> EngineInfo:
        return replace(await super().start(), queue_limit=2)


class OneAtATime(Faulty):
    def __init__(self) -> None:
        OracleEngine.__init__(self, replace(SETTINGS, slots=1, queue_limit=4))

    async def start(self) -> EngineInfo:
        return replace(await super().start(), slots=2)


class StopsLate(Faulty):
    async def stop(self, grace_s: float) -> None:
        await asyncio.sleep(grace_s + 1.5)
        await super().stop(0.0)


@pytest.mark.parametrize(
    ("engine", "test"),
    [
        (LosesAToken, "test_max_tokens_ends_with_length_and_indexes_are_contiguous"),
        (DoublesAToken, "test_max_tokens_ends_with_length_and_indexes_are_contiguous"),
        (StampsTwice, "test_max_tokens_ends_with_length_and_indexes_are_contiguous"),
        (NeverFinishes, "test_max_tokens_ends_with_length_and_indexes_are_contiguous"),
        (SplitsCharacters, "test_text_is_whole_utf8"),
        (LeaksStopStrings, "test_a_stop_string_ends_the_answer_and_never_leaks"),
        (NeverCancels, "test_cancel_while_queued"),
        (NeverCancels, "test_cancel_before_the_first_token"),
        (NeverCancels, "test_cancel_mid_stream"),
        (TakesEverything, "test_overload_is_refused_at_once_and_the_rest_goes_on"),
        (OneAtATime, "test_several_sequences_run_at_once"),
        (StopsLate, "test_stop_is_bounded_and_ends_the_steps"),
    ],
)
async def test_a_faulty_engine_is_caught(engine: type[Faulty], test: str) -> None:
    contract = EngineContract()
    contract.timeout_s = 3.0
    faulty = engine()
    rec = Recorder(faulty, await faulty.start(), contract.timeout_s)
    try:
        with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
            await getattr(contract, test)(rec)
    finally:
        await rec.close()
