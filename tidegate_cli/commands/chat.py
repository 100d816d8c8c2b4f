"""`tidegate chat`: an interactive conversation that shows which node answered."""

from __future__ import annotations

import argparse
import signal
import sys
import uuid

import tidegate
from tidegate_cli.commands import connect


class ChatCommand:
    name = "chat"
    help = "talk to the models; each answer says which node gave it and whether the budget was met"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        connect.add_arguments(parser)
        connect.add_request_arguments(parser)
        parser.add_argument("--system", default="", help="system prompt")
        parser.add_argument("--temperature", type=float, help="0 is greedy")

    async def run(self, args: argparse.Namespace) -> int:
        messages: list[tidegate.Message] = []
        if args.system:
            messages.append(tidegate.Message(tidegate.Role.SYSTEM, args.system))
        session = str(uuid.uuid4())
        interactive = sys.stdin.isatty()
        if interactive:
            print("Type a message; an empty line or Ctrl-D ends.")
        async with connect.client(args) as client:
            while True:
                # Blocks the loop: between two turns nothing else is to be done.
                line = _read_line(interactive)
                if line is None:
                    return 0
                messages.append(tidegate.Message(tidegate.Role.USER, line))
                try:
                    answer = await self._turn(client, messages, session, args)
                except tidegate.TidegateError as error:
                    messages.pop()
                    if not interactive:
                        raise
                    print(f"[{type(error).__name__}: {connect.told(error, args)}]", flush=True)
                    continue
                messages.append(tidegate.Message(tidegate.Role.ASSISTANT, answer))

    async def _turn(
        self,
        client: tidegate.Client,
        messages: list[tidegate.Message],
        session: str,
        args: argparse.Namespace,
    ) -> str:
        async with client.generate(
            messages,
            model=args.model,
            budget=connect.budget(args),
            min_p_good=args.min_p_good,
            placement=tidegate.Placement(args.placement),
            data_class=args.data_class,
            max_tokens=args.max_tokens,
            on_miss=connect.on_miss(args),
            session_id=session,
            temperature=args.temperature,
        ) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
            print()
            completion = stream.completion()
        print(f"[{_facts(completion)}]", flush=True)
        return completion.text


def _read_line(interactive: bool) -> str | None:
    """The next message; None at the end: Ctrl-D, Ctrl-C, or an empty line where somebody types."""
    # The loop's own handler would only take note of Ctrl-C while input() goes on waiting.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while not (line := input("you> " if interactive else "").strip()):
            if interactive:
                return None
        return line
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return None
    finally:
        signal.signal(signal.SIGINT, before)


def _facts(completion: tidegate.Completion) -> str:
    route, timings, usage = completion.route, completion.timings, completion.usage
    where = f"{route.node_name} ({route.tier.value}, {route.quantization or route.model})" if route else "?"
    parts = [where, f"TTFT {timings.ttft_ms:.0f} ms"]
    if route:
        parts.append(f"predicted {route.predicted_ttft_ms:.0f} ms")
    parts.append(
        f"{usage.completion_tokens} tokens at {1000 / timings.tpot_ms:.0f}/s" if timings.tpot_ms else ""
    )
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} prompt tokens warm")
    if completion.budget is not tidegate.BudgetOutcome.NONE:
        parts.append(f"budget {completion.budget.value}")
    return ", ".join(p for p in parts if p)
