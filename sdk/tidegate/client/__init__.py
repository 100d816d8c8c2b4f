"""The client of a Tidegate gateway. Its public names are those of the `tidegate` package."""

from tidegate.client.aio import Client, FleetWatch, GenerateStream
from tidegate.client.answer import Completion, OnRestart
from tidegate.client.request import GenerateOptions, Prompt
from tidegate.client.retry import RetryPolicy
from tidegate.client.sync import SyncClient, SyncFleetWatch, SyncGenerateStream

__all__ = [
    "Client",
    "Completion",
    "FleetWatch",
    "GenerateOptions",
    "GenerateStream",
    "OnRestart",
    "Prompt",
    "RetryPolicy",
    "SyncClient",
    "SyncFleetWatch",
    "SyncGenerateStream",
]
