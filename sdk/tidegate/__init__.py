"""Tidegate: one door to language models on devices and in the cloud.

    async with tidegate.Client("localhost:50051") as client:
        async for chunk in client.generate("Hello", budget=tidegate.Budget(ttft_ms=300)):
            print(chunk.text, end="")

Names are loaded on first use: `import tidegate` alone, and tidegate.routing, load neither gRPC nor protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.client.aio import Client, FleetWatch, GenerateStream
    from tidegate.client.answer import Completion
    from tidegate.client.errors import (
        BudgetUnmeetable,
        Cancelled,
        DeadlineExceeded,
        InternalError,
        InvalidRequest,
        ModelNotFound,
        NotPermitted,
        Overloaded,
        PermissionDenied,
        StreamRestarted,
        TidegateError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from tidegate.client.retry import RetryPolicy
    from tidegate.client.sync import SyncClient, SyncFleetWatch, SyncGenerateStream
    from tidegate.routing.domain import (
        Accepted,
        Budget,
        BudgetOutcome,
        Chunk,
        Explanation,
        Finished,
        FinishReason,
        Health,
        Message,
        OnMiss,
        OutputFormat,
        Placement,
        Power,
        Restarted,
        Role,
        Route,
        Sampling,
        Tier,
        Timings,
        TokenLogprob,
        Usage,
    )
    from tidegate.routing.embedding import Embedded
    from tidegate.wire.channels import TlsConfig
    from tidegate.wire.fleet import Decision, ModelInfo, NodeInfo

__version__ = "0.1.0"

_HOMES = {
    "tidegate.client.aio": ("Client", "FleetWatch", "GenerateStream"),
    "tidegate.client.answer": ("Completion",),
    "tidegate.client.errors": (
        "BudgetUnmeetable",
        "Cancelled",
        "DeadlineExceeded",
        "InternalError",
        "InvalidRequest",
        "ModelNotFound",
        "NotPermitted",
        "Overloaded",
        "PermissionDenied",
        "StreamRestarted",
        "TidegateError",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
    ),
    "tidegate.client.retry": ("RetryPolicy",),
    "tidegate.client.sync": ("SyncClient", "SyncFleetWatch", "SyncGenerateStream"),
    "tidegate.routing.domain": (
        "Accepted",
        "Budget",
        "BudgetOutcome",
        "Chunk",
        "Explanation",
        "FinishReason",
        "Finished",
        "Health",
        "Message",
        "OnMiss",
        "OutputFormat",
        "Placement",
        "Power",
        "Restarted",
        "Role",
        "Route",
        "Sampling",
        "Tier",
        "Timings",
        "TokenLogprob",
        "Usage",
    ),
    "tidegate.routing.embedding": ("Embedded",),
    "tidegate.wire.channels": ("TlsConfig",),
    "tidegate.wire.fleet": ("Decision", "ModelInfo", "NodeInfo"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Accepted",
    "Budget",
    "BudgetOutcome",
    "BudgetUnmeetable",
    "Cancelled",
    "Chunk",
    "Client",
    "Completion",
    "DeadlineExceeded",
    "Decision",
    "Embedded",
    "Explanation",
    "FinishReason",
    "Finished",
    "FleetWatch",
    "GenerateStream",
    "Health",
    "InternalError",
    "InvalidRequest",
    "Message",
    "ModelInfo",
    "ModelNotFound",
    "NodeInfo",
    "NotPermitted",
    "OnMiss",
    "OutputFormat",
    "Overloaded",
    "PermissionDenied",
    "Placement",
    "Power",
    "Restarted",
    "RetryPolicy",
    "Role",
    "Route",
    "Sampling",
    "StreamRestarted",
    "SyncClient",
    "SyncFleetWatch",
    "SyncGenerateStream",
    "TidegateError",
    "Tier",
    "Timings",
    "TlsConfig",
    "TokenLogprob",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Usage",
    "__version__",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
