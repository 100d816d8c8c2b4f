"""Prefixes of public data outlive the real engine, others do not."""

from __future__ import annotations

from pathlib import Path

from llama_driver import Driver, user

from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.settings import LlamaCppSettings
from tidegate.routing.domain import Message, Role

CHATS = {
    name: (Message(Role.SYSTEM, f"You speak of {name} things only. " * 20), user("What is a lock gate?"))
    for name in ("public", "restricted", "")
}


async def life(settings: LlamaCppSettings) -> dict[str, tuple[int, tuple[int, ...]]]:
    """(cached tokens, answer) by data class, in a new engine that is stopped again."""
    driver = Driver(settings)
    await driver.start()
    seen = {}
    for name, chat in CHATS.items():
        key = driver.submit(chat=chat, max_tokens=8, tenant=f"t{name}", data_class=name)
        await driver.finish(key)
        seen[name] = driver.first(key).cached_tokens, driver.tokens(key)
    await driver.stop()
    return seen


async def test_a_restart_leaves_public_prefixes_warm(model_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "prefixes" / "smol"
    settings = LlamaCppSettings(
        model_path=model_path, model=MODEL, slots=2, context_tokens=512, prefix_file=file
    )
    before = await life(settings)
    assert {cached for cached, _ in before.values()} == {0}
    after = await life(settings)
    assert after["public"][0] > 100
    assert after["public"][1] == before["public"][1]
    assert (after["restricted"][0], after[""][0]) == (0, 0)
    file.write_bytes(b"no prefixes at all")
    again = await life(settings)
    assert {cached for cached, _ in again.values()} == {0}
