"""The engine contract over a real third-party server. It generates for one request at a time, so of the
requests that run upstream at once only one streams; the others count as running all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_contract import EngineContract, Recorder
from llama_cpp_server import CONTEXT_TOKENS, llama_cpp_server

from serving.engines.base import Engine
from serving.engines.openai_http import OpenAiHttpEngine, OpenAiHttpSettings
from tidegate.routing.domain import Speeds, Variant, Work


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_cpp_server(tmp_path_factory.mktemp("llama_cpp_server")) as url:
        yield url


class TestOpenAiHttpEngine(EngineContract):
    counts_tokens = False
    short_tokens = 8
    long_tokens = 300

    @pytest.fixture(autouse=True)
    def _use_server(self, server_url: str) -> None:
        self.url = server_url

    async def make_engine(self) -> Engine:
        return OpenAiHttpEngine(
            OpenAiHttpSettings(
                base_url=self.url,
                variant=Variant("smollm2-135m", "a-digest", context_tokens=CONTEXT_TOKENS),
                speeds=Speeds(200.0, ((1, 60.0),)),
                slots=2,
                queue_limit=3,
            )
        )

    async def _all_started(self, rec: Recorder, works: list[Work]) -> None:
        await rec.until(lambda: any(rec.count(work.key) > 0 for work in works))
