"""From an answer to its verdict, from verdicts to a certificate, and what it changes in routing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_rig import QUICK, Rig, until

import tidegate
from tidegate_cli.commands.calibrate import CalibrateCommand
from tidegate_cli.main import build_parser

JSON = {"Content-Type": "application/json"}
SMALL = replace(QUICK, model="small", digest="d-small", perplexity=20.0)
LARGE = replace(QUICK, model="large", digest="d-large", perplexity=5.0)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Rig]:
    quality = {
        "outcome_log": str(tmp_path / "outcomes.jsonl"),
        "drawn_share": 1.0,
        "certificates": str(tmp_path / "certificates"),
    }
    # Cost decides where quality does not, so the small variant answers whatever it may.
    nodes = []
    for name, tier, cost in (("small", "edge", 0.1), ("large", "cloud", 9.0)):
        (tmp_path / name).write_text(f"join-{name}")
        nodes.append({"join_token": {"file": tmp_path / name}, "tier": tier, "cost_per_mtoken": cost})
    async with Rig(quality=quality, nodes=nodes) as rig:
        await rig.add_node("n-small", SMALL, join_token="join-small")
        await rig.add_node("n-large", LARGE, join_token="join-large")
        yield rig


async def model_of(client: tidegate.Client, **options: Any) -> str:
    answer = await client.complete("Thanks!", max_tokens=2, **options)
    assert answer.route is not None
    return answer.route.model


async def certified_over_http(rig: Rig) -> bool:
    chat = {"model": "auto", "messages": [{"role": "user", "content": "Thanks!"}], "max_tokens": 1}
    async with aiohttp.ClientSession(f"http://127.0.0.1:{rig.ports.http}") as http:
        asked = {"x-tidegate-quality": "0.7"}
        async with http.post("/v1/chat/completions", json=chat, headers=asked) as answer:
            told: bool = (await answer.json())["tidegate"]["route"]["certified"]
            return told


async def test_verdicts_certify_the_small_variant_and_only_then_it_meets_a_quality(
    kept: Rig, tmp_path: Path
) -> None:
    async with tidegate.Client(f"127.0.0.1:{kept.ports.grpc}", deadline_s=20.0) as client:
        assert await model_of(client) == "small"
        assert not await certified_over_http(kept)
        # The control: what nobody has proven does not meet a quality, however easy the prompt.
        assert await model_of(client, min_p_good=0.9) == "large"
        for _ in range(80):
            answer = await client.complete("Thanks!", max_tokens=1)
            assert answer.feedback_wanted
            await client.feedback(answer.request_id, worse=False)
        with pytest.raises(tidegate.InvalidRequest):
            await client.feedback("no such id !", worse=False)
        store = tmp_path / "certificates"
        command = ["calibrate", "--log", str(tmp_path / "outcomes.jsonl"), "--store", str(store)]
        options = ["--worse", "0.2", "--settle-hours", "0"]
        assert await CalibrateCommand().run(build_parser().parse_args([*command, *options])) == 0
        await until(lambda: kept.app._certificates.certified.by_variant, what="the certificate in force")
        route = await client.route("Thanks!", min_p_good=0.7)
        assert (route.model, route.certified) == ("small", True)
        assert await certified_over_http(kept)
        assert await model_of(client, min_p_good=0.7) == "small"
        assert await model_of(client, min_p_good=0.9) == "large"  # more than was promised
        # "Worse" was worse than the large one. Beside a better variant nothing is proven of the small one.
        larger = replace(QUICK, model="larger", digest="d-larger", perplexity=3.0)
        await kept.add_node("n-larger", larger, join_token="join-large")
        assert await model_of(client, min_p_good=0.7) == "larger"


async def test_feedback_over_http_is_joined_and_checked(kept: Rig, tmp_path: Path) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{kept.ports.http}") as http:
        chat = {
            "model": "auto",
            "messages": [{"role": "user", "content": "a secret question"}],
            "max_tokens": 2,
        }
        async with http.post("/v1/chat/completions", json=chat) as answer:
            body = await answer.json()
        assert body["tidegate"]["feedback_wanted"] is True
        async with http.post("/v1/feedback", json={"request_id": body["id"], "worse": True}) as answer:
            assert (answer.status, await answer.json()) == (200, {"recorded": True})
        pair = {"request_id": body["id"], "worse": False, "variant": "sha256:abc"}
        async with http.post("/v1/feedback", json=pair) as answer:
            assert answer.status == 200
        odd = b'{"request_id": "x", "worse": true, "variant": 1}'
        for bad in (
            b"{",
            b"[]",
            b'{"request_id": "x"}',
            b'{"request_id": 1, "worse": true}',
            odd,
            b" " * 5000,
        ):
            async with http.post("/v1/feedback", data=bad, headers=JSON) as answer:
                assert answer.status == 400
                assert "message" in (await answer.json())["error"]
    text = (tmp_path / "outcomes.jsonl").read_text()
    assert "secret" not in text
    given, verdict, compared = map(json.loads, text.splitlines())
    assert (verdict["source"], verdict["variant"]) == ("feedback", "")
    assert (compared["source"], compared["variant"]) == ("pair", "sha256:abc")
    assert given["request"].rpartition(":")[0] == verdict["request"]
    assert (given["drawn"], verdict["worse"]) == (True, True)
