"""Reuse of prefixes on the real engine: who shares, what survives, and that answers do not change."""

from __future__ import annotations

import pytest
from llama_driver import Driver, user

from tidegate.routing.domain import AttemptKey, Message, Role
from tidegate.routing.prefix import NAME_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

RULES = Message(Role.SYSTEM, "Answer in one short sentence and never mention the tide tables. " * 14)


def conversation(number: int) -> tuple[Message, ...]:
    return (Message(Role.SYSTEM, f"Guide number {number} speaks. " * 25), user("What is a lock gate?"))


async def test_a_burst_with_one_system_prompt_computes_it_once(shared: Driver) -> None:
    keys = [
        shared.submit(chat=(RULES, user(f"Question {n}: what is a harbour?")), tenant="burst", max_tokens=8)
        for n in range(6)
    ]
    for key in keys:
        await shared.finish(key)
    prompt_tokens = shared.first(keys[0]).prompt_tokens
    cached = sorted(shared.first(key).cached_tokens for key in keys)
    assert cached[0] == 0
    assert cached[1] > 0.7 * prompt_tokens


async def test_shared_while_running_the_answers_are_those_of_a_lone_run(shared: Driver) -> None:
    chats = [(RULES, user(f"Name {n} boats.")) for n in (2, 3)]
    alone = []
    for number, chat in enumerate(chats):
        key = shared.submit(chat=chat, tenant=f"alone{number}", max_tokens=1, top_logprobs=5)
        await shared.finish(key)
        (odds,) = [one for output in shared.outputs[key] for one in output.logprobs]
        alone.append({each.token_id: each.logprob for each in odds.top})
    together = [shared.submit(chat=chat, tenant="together", max_tokens=12) for chat in chats]
    for key in together:
        await shared.finish(key)
    assert shared.first(together[1]).cached_tokens > 0
    # Another batch composition may turn a near-tie; a wrong prefix would change the very first token.
    for key, odds in zip(together, alone, strict=True):
        assert odds.get(shared.tokens(key)[0], -99.0) > max(odds.values()) - 0.5


async def test_a_displaced_conversation_comes_back_from_the_parked_blocks(shared: Driver) -> None:
    keys: list[AttemptKey] = []
    for number in (0, 1, 2, 3, 4, 0):
        keys.append(shared.submit(chat=conversation(number), tenant="guests", max_tokens=8))
        await shared.finish(keys[-1])
    first, again = keys[0], keys[-1]
    assert shared.first(again).cached_tokens >= shared.first(again).prompt_tokens - 16
    assert shared.tokens(again) == shared.tokens(first)


async def test_parked_blocks_belong_to_their_tenant(shared: Driver) -> None:
    for number in range(4):
        await shared.finish(shared.submit(chat=conversation(number), tenant="mine", max_tokens=1))
    key = shared.submit(chat=conversation(0), tenant="yours", max_tokens=1)
    await shared.finish(key)
    assert shared.first(key).cached_tokens == 0


async def test_a_cancelled_leader_leaves_its_part_to_the_next(shared: Driver) -> None:
    words = " ".join(f"word{n}" for n in range(130))
    leader = shared.submit(words, tenant="relay", max_tokens=4)
    follower = shared.submit(words + " end", tenant="relay", max_tokens=4)
    shared.engine.cancel(leader)
    finish = await shared.finish(follower)
    assert finish.usage.completion_tokens > 0


async def test_reported_names_outlive_the_slot_in_parked_blocks(shared: Driver) -> None:
    text = "The pilot boat leaves at six and returns at nine. " * 24
    key = shared.submit(text, tenant="names", max_tokens=1)
    await shared.finish(key)
    shared.engine.cache_changes()
    held = set(shared.engine.cache_full().held)
    for number in range(3):
        await shared.finish(shared.submit(f"{number} " * 60, tenant=f"other{number}", max_tokens=1))
    shared.engine.cache_changes()
    after = set(shared.engine.cache_full().held)
    assert all(len(name) == NAME_BYTES for name in held)
    assert len(held & after) >= 2
