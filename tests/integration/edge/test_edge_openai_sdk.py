"""The openai package, unchanged, against the daemon's own API."""

from __future__ import annotations

import openai
import pytest
from edge_daemon_process import Daemon, DaemonMaker
from openai.types.chat import ChatCompletionUserMessageParam


@pytest.fixture
def daemon(daemons: DaemonMaker) -> Daemon:
    return daemons.start({"ENGINE__ORACLE__PACING": "0", "ENGINE__MODEL_NAME": "tiny"})


def test_lists_completes_and_streams(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        asked: ChatCompletionUserMessageParam = {"role": "user", "content": "tell me"}
        whole = client.chat.completions.create(model="tiny", messages=[asked], max_tokens=6)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        parts = list(
            client.chat.completions.create(
                model="tiny",
                messages=[asked],
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == whole.choices[0].message.content
        assert parts[-1].usage == whole.usage
        plain = client.completions.create(model="tiny", prompt="tell me", max_tokens=4)
        assert plain.choices[0].finish_reason == "length"


def test_errors_are_the_packages_own(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nothing", prompt="x")
