"""Tool calls through a template with a place for tools, on the real model."""

from __future__ import annotations

import json
from pathlib import Path

from llama_driver import Driver, user

from serving.engines.llama_cpp.bundled import MODEL
from serving.engines.llama_cpp.constraint import is_of_calls
from serving.engines.llama_cpp.settings import LlamaCppSettings
from serving.openai_api.tools import AUTO, REQUIRED, Function, Tools
from tidegate.routing.domain import OutputFormat, Sampling

TEMPLATE = """{%- if tools %}<|im_start|>system
Functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one like this:
<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Lima"]}}, "required": ["city"]}
FUNCTIONS = (Function("weather", "tells the weather", CITY), Function("clock", "tells the time", CITY))


def test_schemas_of_calls_are_known_as_such() -> None:
    assert is_of_calls(Tools(FUNCTIONS, REQUIRED).format())
    assert is_of_calls(Tools(FUNCTIONS, AUTO).format())
    assert not is_of_calls(Tools(FUNCTIONS, "clock").format())
    assert not is_of_calls(OutputFormat(json_schema=json.dumps({"anyOf": [CITY]})))


async def test_forced_calls_are_well_formed_in_the_form_that_the_template_asks_for(model_path: Path) -> None:
    driver = Driver(
        LlamaCppSettings(
            model_path=model_path, model=MODEL, slots=2, context_tokens=512, chat_template=TEMPLATE
        )
    )
    await driver.start()
    try:
        asked = (user("How is the weather in Lima?"),)
        answers = []
        for choice, seed in ((REQUIRED, 1), (REQUIRED, 2), (REQUIRED, 3), ("weather", 1)):
            tools = Tools(FUNCTIONS, choice)
            key = driver.submit(
                chat=tools.introduce(asked),
                max_tokens=220,
                sampling=Sampling(temperature=0.7, seed=seed),
                format=tools.format(),
            )
            await driver.finish(key)
            calls = tools.read(driver.text(key))
            assert calls, driver.text(key)
            assert all(json.loads(call.arguments)["city"] in ("Oslo", "Lima") for call in calls)
            answers.append(driver.text(key))
        assert any(answer.startswith("<tool_call>") for answer in answers)
        assert answers[-1].startswith("{")
    finally:
        await driver.stop()
