"""Stream an answer and say where it came from.

tidegate up                            # in another terminal
python examples/chat_stream.py "Why is the sea salty?"
"""

import asyncio
import os
import sys

import tidegate

ADDRESS = os.environ.get("TIDEGATE_ADDRESS", "localhost:50051")


async def main(prompt: str) -> None:
    async with tidegate.Client(ADDRESS) as client:
        async with client.generate(prompt, budget=tidegate.Budget(ttft_ms=500), max_tokens=80) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
        answer = stream.completion()
    print()
    if answer.route is not None:
        print(
            f"[{answer.route.node_name} ({answer.route.tier}), first token after "
            f"{answer.timings.ttft_ms:.0f} ms of {answer.route.predicted_ttft_ms:.0f} predicted, "
            f"budget {answer.budget}]"
        )


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "What does a tide gate do?"))
    except tidegate.TidegateError as error:
        sys.exit(f"{type(error).__name__}: {error}")
