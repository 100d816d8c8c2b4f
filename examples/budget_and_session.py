"""What a request may ask for: a latency budget or nothing, quality, data that stays home, a conversation.

tidegate up                            # in another terminal
python examples/budget_and_session.py
"""

import os
import sys

import tidegate

ADDRESS = os.environ.get("TIDEGATE_ADDRESS", "localhost:50051")


def told(what: str, answer: tidegate.Completion) -> None:
    node = answer.route.node_name if answer.route else "?"
    print(
        f"{what}: {node}, first token after {answer.timings.ttft_ms:.0f} ms, "
        f"{answer.usage.cached_tokens} of {answer.usage.prompt_tokens} prompt tokens warm, "
        f"budget {answer.budget}"
    )


def main() -> None:
    # The blocking client; tidegate.Client is the same for asyncio.
    with tidegate.SyncClient(ADDRESS) as client:
        # Refused at once, rather than late: nobody answers within a millisecond.
        try:
            client.complete(
                "Hurry!", budget=tidegate.Budget(ttft_ms=1), on_miss=tidegate.OnMiss.REJECT, max_tokens=8
            )
        except tidegate.BudgetUnmeetable as refused:
            limit_ms = 2 * float(refused.details["meetable_ttft_ms"])
            print(f"1 ms: refused; asking for {limit_ms:.0f} ms instead")
            told("budget", client.complete("Hurry!", budget=tidegate.Budget(ttft_ms=limit_ms), max_tokens=8))

        # A label decides where data may go, whatever fails: "restricted" never leaves the edge.
        told("restricted", client.complete("A secret.", data_class="restricted", max_tokens=8))

        # Turns of one conversation go where their prefix is warm.
        turns = [tidegate.Message(tidegate.Role.USER, "Remember this: " + "the tide comes and goes. " * 60)]
        first = client.complete(turns, session_id="example", max_tokens=8)
        told("first turn", first)
        turns.append(tidegate.Message(tidegate.Role.ASSISTANT, first.text))
        turns.append(tidegate.Message(tidegate.Role.USER, "And what comes next?"))
        told("second turn", client.complete(turns, session_id="example", max_tokens=8))


if __name__ == "__main__":
    try:
        main()
    except tidegate.TidegateError as error:
        sys.exit(f"{type(error).__name__}: {error}")
