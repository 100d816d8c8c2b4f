"""One life of a link: from dialling both connections to the loss of either."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from tidegate.link import codec
from tidegate.link.intake import Intake, IntakeError, IntakeRefused
from tidegate.link.seam import NodeService, WorkRefused
from tidegate.link.uplink import Uplink
from tidegate.node.v1 import node_pb2, node_pb2_grpc
from tidegate.routing.domain import AttemptKey, CacheDelta, Cause, Failure, SequenceOutput, Work
from tidegate.wire.channels import TlsConfig, open_channel

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
MIN_HEARTBEAT_GAP_S = 1.0


def _stub(channel: grpc.aio.Channel) -> Any:
    # The generated hints describe the blocking API; the asyncio stub takes no request iterator.
    return node_pb2_grpc.NodeLinkServiceStub(channel)


class LinkRefused(Exception):
    """The gateway does not want this node; the message is its reason."""


class LinkLost(Exception):
    """The gateway ended a stream."""


@dataclass(frozen=True, slots=True)
class LinkCredentials:
    """How a node shows itself. `next_link_epoch` rises with every call, also across restarts.

    `prove` gives the node's public key and its signature over the bytes; without it the id is only claimed.
    """

    next_link_epoch: Callable[[], int]
    prove: Callable[[bytes], tuple[bytes, bytes]] | None = None
    join_token: str = ""
    tls: TlsConfig | None = None


async def _expect(control: Any, kind: str) -> Any:
    """The next message of this kind; a challenge nobody asked for is passed over. Raises LinkRefused."""
    while (message := await control.read()) is not grpc.aio.EOF:
        if message.WhichOneof("message") == kind:
            return message
        if message.WhichOneof("message") != "challenge":
            raise LinkRefused(f"the gateway did not answer with `{kind}`")
    raise LinkRefused(await control.details() or "the gateway ended the handshake")


class LinkSession:
    """Implements NodeListener for one connected gateway replica."""

    def __init__(
        self, service: NodeService, address: str, credentials: LinkCredentials, clock: Callable[[], float]
    ) -> None:
        self._service = service
        self._address = address
        self._credentials = credentials
        self._clock = clock
        self._uplink = Uplink()
        self._outbox = self._uplink.outbox
        self._intake = Intake()
        self._heartbeat_s = 2.0
        self._load_dirty = asyncio.Event()
        self._control_wake = asyncio.Event()
        self._pongs: list[int] = []
        self._cache: list[CacheDelta] = []
        self._last_beat_asked = False
        self.connected = asyncio.Event()

    # --- NodeListener -------------------------------------------------------------------------------

    def deliver(self, outputs: Sequence[SequenceOutput]) -> None:
        self._outbox.put(outputs)

    def load_changed(self) -> None:
        self._load_dirty.set()
        self._control_wake.set()

    def cache_changed(self, delta: CacheDelta) -> None:
        self._cache.append(delta)
        self._control_wake.set()

    # --- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until the link is lost. Raises LinkLost, LinkRefused or grpc.RpcError."""
        options: dict[str, Any] = {"tls": self._credentials.tls, "own_connection": True, "small_window": True}
        async with (
            open_channel(self._address, **options) as control_channel,
            open_channel(self._address, **options) as data_channel,
        ):
            control = _stub(control_channel).Control()
            registered = await self._register(control)
            data = _stub(data_channel).Data()
            await self._hello(data, registered.link_token)
            self._service.attach(self)
            self.connected.set()
            try:
                await self._pump(control, data)
            finally:
                self.connected.clear()
                self._service.detach(self)
                control.cancel()
                data.cancel()

    def finish(self) -> None:
        """Ends the link after a last heartbeat and once the gateway has read all outputs and replies.

        run() then returns as after any other loss. What still runs keeps the link until it has ended.
        """
        self._last_beat_asked = True
        self._control_wake.set()

    async def _register(self, control: Any) -> node_pb2.Registered:
        announcement, prove = self._service.announcement(), self._credentials.prove
        link_epoch = self._credentials.next_link_epoch()
        proof = (b"", b"")
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            if prove is not None:
                nonce = (await _expect(control, "challenge")).challenge.nonce
                proof = prove(codec.proof_message(nonce, announcement, link_epoch))
            register = codec.register_to_pb(
                announcement,
                link_epoch=link_epoch,
                join_token=self._credentials.join_token,
                proof=proof,
            )
            await control.write(node_pb2.ControlRequest(register=register))
            registered = (await _expect(control, "registered")).registered
        self._heartbeat_s = max(0.1, registered.heartbeat_interval_ms / 1000 or 2.0)
        return registered  # type: ignore[no-any-return]

    async def _hello(self, data: Any, link_token: str) -> None:
        hello = node_pb2.Hello(node_id=self._service.announcement().node_id, link_token=link_token)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            await data.write(node_pb2.DataRequest(hello=hello))
            answer = await data.read()
        if answer is grpc.aio.EOF or answer.WhichOneof("message") != "opened":
            raise LinkRefused("the gateway refused the data stream")

    async def _pump(self, control: Any, data: Any) -> None:
        """Runs the link's tasks; the first to end ends all."""
        tasks = [
            asyncio.create_task(step, name=f"link-{name}")
            for name, step in (
                ("control-read", self._read_control(control)),
                ("control-write", self._write_control(control)),
                ("data-read", self._read_data(data)),
                ("data-write", self._uplink.run(data)),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    # --- control ------------------------------------------------------------------------------------

    async def _read_control(self, control: Any) -> None:
        while (message := await control.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            if kind == "cancel":
                key = codec.key_from_pb(message.cancel.key)
                self._intake.cancel(key)
                self._outbox.forget(key)
                self._service.cancel(key)
            elif kind == "ping":
                self._pongs.append(message.ping.nonce)
                self._control_wake.set()
            elif kind == "fence":
                self._service.fence(codec.key_from_pb(message.fence.key))
            elif kind == "drain":
                self._service.drain()
            elif kind == "cache_resync":
                self.cache_changed(self._service.cache_full())
        raise LinkLost("the gateway ended the control stream")

    async def _write_control(self, control: Any) -> None:
        """Pongs first, then heartbeats, then the cache.

        A heartbeat goes at every interval, on change but at most at 1 Hz, and at once when the node begins or
        ceases to take work.
        """
        self.cache_changed(self._service.cache_full())
        self._load_dirty.set()
        last_beat = -MIN_HEARTBEAT_GAP_S
        takes_work: tuple[bool, bool] | None = None
        while True:
            while self._pongs:
                pong = node_pb2.Pong(nonce=self._pongs.pop(0))
                await control.write(node_pb2.ControlRequest(pong=pong))
            load = self._service.load()
            since_beat = self._clock() - last_beat
            due_in = self._heartbeat_s - since_beat
            if self._load_dirty.is_set():
                due_in = min(due_in, MIN_HEARTBEAT_GAP_S - since_beat)
            is_last = self._last_beat_asked
            if due_in <= 0 or is_last or takes_work != (load.ready, load.draining):
                self._load_dirty.clear()
                last_beat, takes_work = self._clock(), (load.ready, load.draining)
                load = replace(load, last_work_seq=self._intake.acked_seq)
                await control.write(node_pb2.ControlRequest(heartbeat=codec.load_to_pb(load)))
                if is_last:
                    self._last_beat_asked = False
                    self._uplink.finish()
            elif self._cache:
                report = codec.cache_to_pb(self._cache.pop(0))
                await control.write(node_pb2.ControlRequest(cache_report=report))
            else:
                await self._wait_control(due_in)

    async def _wait_control(self, timeout_s: float) -> None:
        self._control_wake.clear()
        if self._pongs or self._cache or self._last_beat_asked:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._control_wake.wait()
        except TimeoutError:
            pass

    # --- data ---------------------------------------------------------------------------------------

    async def _read_data(self, data: Any) -> None:
        while (message := await data.read()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            try:
                if kind == "work":
                    self._begin(codec.work_from_pb(message.work), message.work.input_bytes)
                elif kind == "work_fragment":
                    fragment = message.work_fragment
                    ack = node_pb2.FragmentAck(bytes=len(fragment.data))
                    self._uplink.reply(node_pb2.DataRequest(fragment_ack=ack))
                    key = codec.key_from_pb(fragment.key)
                    self._take(self._intake.add(key, fragment.data, self._clock()))
                elif kind == "credit":
                    self._outbox.grant(codec.key_from_pb(message.credit.key), message.credit.chunks)
            except IntakeRefused as refused:
                self._bounce(refused.key, refused.failure)
            except IntakeError as error:
                raise LinkLost(f"protocol error: {error}") from error
        raise LinkLost("the gateway ended the data stream")

    def _begin(self, work: Work, input_bytes: int) -> None:
        self._take(self._intake.begin(work, input_bytes, self._clock()))
        if work.key in self._intake and self._service.load().draining:
            # Better now than after the rest of a large input has come.
            self._intake.cancel(work.key)
            self._bounce(work.key, Failure(Cause.DRAINING, "the node takes no more work"))

    def _take(self, work: Work | None) -> None:
        if work is None:
            return
        if work.key in self._outbox:
            # Sent twice: the one that runs keeps its credits and its outputs.
            self._bounce(work.key, Failure(Cause.FENCED, "this attempt runs already"))
            return
        self._outbox.open(work.key, work.credits)
        try:
            self._service.submit(self, work)
        except WorkRefused as refused:
            self._refuse(work.key, refused.failure)
        except Exception as error:  # noqa: BLE001 - logged below, without its words
            # One request's defect is not the link's. The error's own words may quote the prompt.
            trace = "".join(traceback.format_tb(error.__traceback__))
            log.error("work could not be taken", extra={"error": type(error).__name__, "trace": trace})
            self._refuse(work.key, Failure(Cause.INTERNAL, "the node failed to take the work"))

    def _refuse(self, key: AttemptKey, failure: Failure) -> None:
        self._outbox.forget(key)
        self._bounce(key, failure)

    def _bounce(self, key: AttemptKey, failure: Failure) -> None:
        bounce = node_pb2.Bounce(
            key=codec.key_to_pb(key),
            failure=codec.failure_to_pb(failure),
            queued=self._service.load().queued,
        )
        self._uplink.reply(node_pb2.DataRequest(bounce=bounce))
