"""Acts and the verdict of the demo: it can fail, and then says how."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tidegate_cli.commands import demo
from tidegate_cli.demo.report import Act, Stage
from tidegate_cli.stack import ChildFailed, FleetOptions, LocalFleet
from tidegate_cli.stack.ports import free_ports


def act(*holds: bool) -> Act:
    made = Act("routes", "a. Title", ("request", "why"))
    made.row("tight", "because " * 60)
    for number, held in enumerate(holds):
        made.check(f"claim {number}", held)
    return made


def test_an_act_behaves_only_if_every_claim_holds_and_there_is_one() -> None:
    assert act(True, True).behaved
    assert not act(True, False).behaved
    assert not act().behaved


def test_people_see_shortened_reasons_and_json_whole_ones() -> None:
    lines: list[str] = []
    act(True, False).show(lines.append, 80)
    table, *checks = lines
    assert max(map(len, table.splitlines())) <= 80
    assert table.endswith("because…")
    assert checks == ["  yes  claim 0", "  NO   claim 1"]
    facts = act(True, False).facts()
    assert facts["rows"] == [{"request": "tight", "why": "because " * 60}]
    assert facts["behaved"] is False


def conclude(acts: list[Act], which: str, *, as_json: bool = False) -> tuple[int, str]:
    said: list[str] = []
    code = demo._conclude(acts, which, 12.0, as_json, said.append)
    return code, said[-1].strip()


def test_exit_code_follows_the_acts(capsys: pytest.CaptureFixture[str]) -> None:
    assert conclude([act(True)], "a") == (0, "all acts behaved (12 s)")
    assert conclude([act(True), act(False)], "ab") == (1, "did NOT behave: routes (12 s)")
    # One of two was never played.
    assert conclude([act(True)], "ab")[0] == 1
    assert capsys.readouterr().out == ""
    assert conclude([act(False)], "a", as_json=True)[0] == 1
    assert json.loads(capsys.readouterr().out)["behaved"] is False


@pytest.fixture
def fleet() -> Iterator[LocalFleet]:
    """Never started: everything an act asks of it fails."""
    unborn = LocalFleet(FleetOptions(ports=free_ports(), engine="oracle"), lambda line: None)
    yield unborn
    unborn.folder.rmdir()


@pytest.mark.parametrize("key", ["a", "b"])
async def test_an_act_that_breaks_off_is_a_failed_act_and_the_last(fleet: LocalFleet, key: str) -> None:
    said: list[str] = []
    acts: list[Act] = []
    assert await demo._play(Stage(fleet, ["x"], said.append), key + "c", acts)
    (only,) = acts
    assert not only.behaved
    assert only.checks[-1][0].startswith("played to its end: ")
    assert said[-1] == f"logs: {fleet.folder}"


async def test_a_child_that_does_not_come_up_is_named(fleet: LocalFleet) -> None:
    broken = FleetOptions(ports=fleet.options.ports, engine="oracle", pacing=-1.0)
    other = LocalFleet(broken, lambda line: None)
    try:
        with pytest.raises(ChildFailed, match=r"^(edge-a|edge-b|cloud-1) ended while starting: .*pacing"):
            await other.start()
        assert other.children["gateway"].pid
    finally:
        await other.stop(keep_logs=True)
    assert other.dead() == list(other.children)
    assert (other.folder / "gateway.log").exists()
    await other.stop()
    assert not other.folder.exists()


def test_prompts_of_a_stage_repeat(fleet: LocalFleet) -> None:
    stage = Stage(fleet, ["a", "b"], lambda line: None)
    assert [stage.prompt(i) for i in range(5)] == ["a", "b", "a", "b", "a"]
