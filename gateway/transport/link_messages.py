"""What goes down a link, as messages."""

from __future__ import annotations

from gateway.upstream.commands import (
    CacheResyncCommand,
    CancelCommand,
    ControlCommand,
    CreditCommand,
    DataCommand,
    DrainCommand,
    FenceCommand,
    PingCommand,
    WorkCommand,
)
from tidegate.link import codec
from tidegate.node.v1 import node_pb2


def encode_control(command: ControlCommand) -> node_pb2.ControlResponse:
    match command:
        case CancelCommand(key):
            return node_pb2.ControlResponse(cancel=node_pb2.Cancel(key=codec.key_to_pb(key)))
        case FenceCommand(key):
            return node_pb2.ControlResponse(fence=node_pb2.Fence(key=codec.key_to_pb(key)))
        case PingCommand(nonce):
            return node_pb2.ControlResponse(ping=node_pb2.Ping(nonce=nonce))
        case DrainCommand():
            return node_pb2.ControlResponse(drain=node_pb2.Drain())
        case CacheResyncCommand():
            return node_pb2.ControlResponse(cache_resync=node_pb2.CacheResync())


def encode_data(command: DataCommand) -> node_pb2.DataResponse:
    if isinstance(command, WorkCommand):
        return node_pb2.DataResponse(work=codec.work_to_pb(command.work, command.first_fragment))
    if isinstance(command, CreditCommand):
        return node_pb2.DataResponse(
            credit=node_pb2.Credit(key=codec.key_to_pb(command.key), chunks=command.chunks)
        )
    fragment = node_pb2.WorkFragment(key=codec.key_to_pb(command.key), data=command.data)
    return node_pb2.DataResponse(work_fragment=fragment)
