"""How much of a step is not llama.cpp: `python -m benchmarks.engine.share MODEL STREAMS THREADS GPU_LAYERS`.

Runs the child's own loop and reporter in this process over a real socket, with clocks around llama_decode and
around choosing tokens. Prints one JSON object: medians over the steps in which all streams got a token.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from serving.engines.llama_cpp.child import Reporter
from serving.engines.llama_cpp.loop import DecodeLoop
from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context, Model, start_backend
from serving.engines.llama_cpp.protocol import ChildConfig, Emission, LoadState
from serving.engines.llama_cpp.sequence import Prepared, Running
from tidegate.routing.domain import AttemptKey, InputKind, Sampling, Work

PROMPT_TOKENS, ANSWER_TOKENS = 16, 96
CONTEXT_TOKENS = 512


class Clocks:
    """Milliseconds of the loop's thread in each step in which all streams got a token.

    CPU time, in which other processes on the machine do not show; with a GPU, for which the thread waits, the
    time that passed.
    """

    def __init__(self) -> None:
        self.total_ms: list[float] = []
        self.decode_ms: list[float] = []
        self.sample_ms: list[float] = []

    def medians(self) -> dict[str, float]:
        """Of the steps, with `own_ms`, what is none of llama.cpp's."""
        parts = zip(self.total_ms, self.decode_ms, self.sample_ms, strict=True)
        return {
            "total_ms": statistics.median(self.total_ms),
            "decode_ms": statistics.median(self.decode_ms),
            "sample_ms": statistics.median(self.sample_ms),
            "own_ms": statistics.median(total - decode - sample for total, decode, sample in parts),
        }


class EndlessModel(Model):
    """Its answers go on until their tokens are used up."""

    def is_end(self, token: int) -> bool:
        super().is_end(token)
        return False


class TimedContext(Context):
    """A context that knows how long its decodes took by its clock."""

    decode_s = 0.0
    now_s: Callable[[], float] = time.thread_time

    def decode(self, count: int) -> bool:
        began_s = self.now_s()
        done = super().decode(count)
        self.decode_s += self.now_s() - began_s
        return done


def main(arguments: list[str]) -> int:
    path, streams, threads, gpu_layers = arguments[0], *map(int, arguments[1:])
    start_backend(debug=False)
    model = EndlessModel(path, n_gpu_layers=gpu_layers)
    context = TimedContext(
        model,
        sequences=streams,
        context_tokens=CONTEXT_TOKENS,
        n_batch=512,
        threads=threads,
        kv_type="f16",
        flash=gpu_layers != 0,
    )
    if gpu_layers:
        context.now_s = time.perf_counter
    config = ChildConfig(
        model_path=path,
        n_gpu_layers=gpu_layers,
        threads=threads,
        slots=streams,
        context_tokens=CONTEXT_TOKENS,
        n_batch=512,
        prefill_chunk=512,
        step_guard_ms=200.0,
        kv_type="f16",
        chat_template="",
        temperature=0.8,
        top_k=40,
        top_p=0.95,
        min_p=0.05,
        debug=False,
    )
    print(json.dumps(measure(model, context, config).medians()))
    return 0


def measure(model: Model, context: TimedContext, config: ChildConfig) -> Clocks:
    ours, theirs = socket.socketpair()
    # The reader is another process, as the daemon is.
    reader = subprocess.Popen(
        ["cat"], stdin=theirs.fileno(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    theirs.close()
    meter = SpeedMeter(500.0, {1: 10.0})
    reporter = Reporter(ours, meter)
    clocks, sampled_s, now_s = Clocks(), [0.0], context.now_s

    last: list[tuple[float, float, float]] = []
    open_answers = set(range(1, config.slots + 1))

    def report(emissions: list[Emission], freed: list[int], load: LoadState) -> None:
        reporter.report(emissions, freed, load)
        now = (now_s(), context.decode_s, sampled_s[0])
        if last and len(emissions) == config.slots:
            clocks.total_ms.append((now[0] - last[0][0]) * 1000.0)
            clocks.decode_ms.append((now[1] - last[0][1]) * 1000.0)
            clocks.sample_ms.append((now[2] - last[0][2]) * 1000.0)
        last[:] = [now] if len(emissions) == config.slots else []
        open_answers.difference_update(e.sid for e in emissions if e.finish is not None)
        if not open_answers:
            loop.stop()

    class TimedLoop(DecodeLoop):
        def _draw(self, wanted: list[tuple[Running, int]]) -> list[int]:
            began_s = now_s()
            tokens = super()._draw(wanted)
            sampled_s[0] += now_s() - began_s
            return tokens

    loop = TimedLoop(model, context, config, meter, report)
    reporter.loop = loop
    rng = np.random.default_rng(1)
    for sid in sorted(open_answers):
        work = Work(
            key=AttemptKey(f"r{sid}", 1),
            tenant=f"t{sid}",
            variant_digest="",
            input_kind=InputKind.TEXT,
            input=b"",
            sampling=Sampling(seed=sid),
            max_tokens=ANSWER_TOKENS,
        )
        prompt = rng.integers(0, model.n_vocab, PROMPT_TOKENS).astype(np.int32)
        loop.expect(sid)
        loop.arrive(Prepared(sid, work, prompt, len(prompt), time.monotonic() * 1000.0))
    loop.run()
    ours.close()
    reader.wait()
    return clocks


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
