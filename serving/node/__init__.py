"""One node: the runtime around its engine, and its local backend for the OpenAI front."""

from serving.node.local_backend import LocalBackend
from serving.node.runtime import NodeIdentityLike, NodeRuntime

__all__ = ["LocalBackend", "NodeIdentityLike", "NodeRuntime"]
