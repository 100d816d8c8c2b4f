"""The unmodified openai package against Tidegate; what Tidegate adds travels in the body.

pip install openai
tidegate up                            # in another terminal
python examples/openai_client.py
"""

import os
import sys

import openai

# The same works against a device's own API without any gateway: http://127.0.0.1:11435/v1
BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://localhost:8080/v1")


def main() -> None:
    with openai.OpenAI(base_url=BASE_URL, api_key=os.environ.get("TIDEGATE_API_KEY", "none")) as client:
        print("models:", ", ".join(model.id for model in client.models.list()))
        stream = client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "Name three rivers."}],
            max_tokens=32,
            stream=True,
            extra_body={"tidegate": {"ttft_ms": 500, "placement": "edge"}},
        )
        for event in stream:
            for choice in event.choices:
                print(choice.delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except openai.OpenAIError as error:
        sys.exit(f"{type(error).__name__}: {error}")
