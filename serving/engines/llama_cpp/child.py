"""The engine's child process: `python -m serving.engines.llama_cpp.child FD PARENT_PID`.

Four threads: one reads frames, one turns inputs into tokens, one embeds, the main one computes answers. It
ends when the parent closes its end of the socket.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from serving.engines.llama_cpp import protocol
from serving.engines.llama_cpp.embedding import Embedder
from serving.engines.llama_cpp.intake import InputPreparer
from serving.engines.llama_cpp.isolate import isolate
from serving.engines.llama_cpp.keeper import Keeper
from serving.engines.llama_cpp.load_log import LoadLog
from serving.engines.llama_cpp.loop import DecodeLoop
from serving.engines.llama_cpp.mapped import release_model_pages
from serving.engines.llama_cpp.meter import SpeedMeter
from serving.engines.llama_cpp.native import Context, Model, NativeError, build_id, start_backend
from serving.engines.llama_cpp.parking import parking_budget
from serving.engines.llama_cpp.pinned import pinned_prompts
from serving.engines.llama_cpp.protocol import ChildConfig, Emission, Frame, LoadState
from serving.engines.llama_cpp.sandbox import seal
from serving.engines.llama_cpp.template import ChatTemplate, PromptError
from serving.engines.llama_cpp.tuning.device import DeviceTuning

_LAST_STEP_S = 0.5
_SPEEDS_EVERY_S = 1.0


class Reporter:
    """Sends what the loop did, with changes of the cache and, once a second, the speeds."""

    def __init__(self, sock: socket.socket, meter: SpeedMeter) -> None:
        self._sock = sock
        self._meter = meter
        self._speeds_due = 0.0
        self._sending = threading.Lock()
        self.loop: DecodeLoop | None = None
        self.tuning: DeviceTuning | None = None

    def send(self, frame: Frame) -> None:
        """From any thread. A parent that is gone is noticed by the reader."""
        data = protocol.encode(frame)
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError:
            pass

    def report(self, emissions: list[Emission], freed: list[int], load: LoadState) -> None:
        frame: Frame = {
            "t": "step",
            "out": [protocol.pack_emission(e) for e in emissions],
            "freed": freed,
            "load": [
                load.running,
                load.queued,
                load.pending_prefill_tokens,
                load.pending_decode_tokens,
                load.free_cache_tokens,
                load.seen,
                load.pinned_tokens,
            ],
        }
        if self.loop is not None:
            held, evicted = self.loop.cache.names.take_changes()
            if held or evicted:
                frame["held"] = [name.hex() for name in held]
                frame["evicted"] = [name.hex() for name in evicted]
        now = time.monotonic()
        if now >= self._speeds_due:
            self._speeds_due = now + _SPEEDS_EVERY_S
            frame["speeds"] = speeds(self._meter)
        if self.tuning is not None and (change := self.tuning.take_change()) is not None:
            frame["threads"] = change
        if self.tuning is not None and (fewer := self.tuning.take_slots()) is not None:
            frame["slots"] = fewer
        self.send(frame)


def speeds(meter: SpeedMeter) -> list[object]:
    return [meter.prefill_tokens_per_s, meter.decode_curve()]


def load_template(model: Model, source: str) -> ChatTemplate | None:
    """None when the model has no template: it then takes text prompts only."""
    if not source:
        return None
    bos, eos = model.boundary_texts()
    return ChatTemplate(source, model, model.special_texts(), bos=bos, eos=eos)


def warm_first(warm: Callable[[], bool], has_time: Callable[[], bool]) -> None:
    """Computes chunk by chunk while there is one and time for it: a slow device must become ready too."""
    while has_time() and warm():
        pass


def read_frames(
    sock: socket.socket, loop: DecodeLoop, preparer: InputPreparer, embedder: Embedder, keeper: Keeper
) -> None:
    """The reader's thread: ends the process when the parent is gone."""
    try:
        while (frame := protocol.receive(sock)) is not None:
            if frame["t"] == "cancel":
                loop.cancel(frame["sid"])
            elif frame["t"] == "work":
                loop.expect(frame["sid"])
                arrived_ms = time.monotonic() * 1000.0 - frame["waited_ms"]
                preparer.put(frame["sid"], protocol.unpack_work(frame), arrived_ms)
            elif frame["t"] == "keep":
                loop.call(keeper.write)
            elif frame["t"] == "embed":
                embedder.put(frame["sid"], frame["texts"])
            elif frame["t"] == "cancel_embed":
                embedder.cancel(frame["sid"])
    finally:
        loop.stop()
        # The main thread may be inside a long step; a child without parent must not go on computing.
        time.sleep(_LAST_STEP_S)
        os._exit(0)


def serve(sock: socket.socket, config: ChildConfig) -> None:
    """Loads, measures, and computes until the parent is gone. Raises NativeError, PromptError."""
    began = time.monotonic()
    exposed = seal(memory_limit_bytes=config.memory_limit_bytes, helpers=config.n_gpu_layers != 0)
    start_backend(debug=config.debug)
    log = LoadLog(echo=config.debug)
    model = Model(config.model_path, n_gpu_layers=config.n_gpu_layers)
    log.close()
    source = config.chat_template or model.chat_template
    template = load_template(model, source)
    config = dataclasses.replace(config, context_tokens=min(config.context_tokens, model.context_train))
    tuning = DeviceTuning(config, build_id())
    context = Context(
        model,
        sequences=config.slots,
        context_tokens=config.context_tokens,
        n_batch=config.n_batch,
        threads=tuning.threads,
        kv_type=config.kv_type,
        flash=config.flash,
    )
    release_model_pages()
    loaded = time.monotonic()
    meter = tuning.meter(context, model)
    reporter = Reporter(sock, meter)
    park_bytes = parking_budget(context, config)
    loop = DecodeLoop(model, context, config, meter, reporter.report, park_bytes)
    reporter.loop = loop
    reporter.tuning = tuning
    tuning.attach(loop, context, model, meter, reporter.send)
    keeper = Keeper(loop, config, reporter.send)
    read = keeper.read(context, meter.prefill_tokens_per_s)
    measured = time.monotonic()
    prompts, left_out = pinned_prompts(config.pinned, model, template, config.context_tokens)
    warmer = loop.pin(prompts)
    # A child that takes the place of another one serves first.
    if config.known_speeds is None:
        warm_first(warmer.warm, lambda: time.monotonic() - began < config.pin_within_s)
    preparer = InputPreparer(model, template, config.context_tokens, loop.arrive)
    preparer.start()
    embedder = Embedder(model, config, reporter.send)
    embedder.start()
    ready: Frame = {
        "t": "ready",
        "build": build_id(),
        "exposed": exposed,
        "template": source,
        "context_tokens": config.context_tokens,
        "repacked_bytes": log.repacked_bytes,
        "gpus": log.gpus,
        "speeds": speeds(meter),
        "speeds_age_s": tuning.speeds_age_s,
        "threads": tuning.threads,
        "load_ms": (loaded - began) * 1000.0,
        "measure_ms": (measured - loaded) * 1000.0,
        "pinned_tokens": warmer.pinned_tokens,
        "pinned_ms": (time.monotonic() - measured) * 1000.0,
        "pins_late": config.known_speeds is None and not warmer.done,
        "prefixes": read,
        "not_pinned": [*left_out, *warmer.refused],
    }
    reporter.send(ready)
    threading.Thread(
        target=read_frames, args=(sock, loop, preparer, embedder, keeper), name="read-frames", daemon=True
    ).start()
    # What is there now stays: nobody's step waits for it to be looked through again.
    gc.collect()
    gc.freeze()
    loop.run()


def main(arguments: list[str]) -> int:
    fd, parent_pid = int(arguments[0]), int(arguments[1])
    isolate(parent_pid)
    sock = socket.socket(fileno=fd)
    first = protocol.receive(sock)
    if first is None:
        return 0
    try:
        serve(sock, ChildConfig(**first["config"]))
    except (NativeError, PromptError) as error:
        sock.sendall(protocol.encode({"t": "refused", "detail": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
