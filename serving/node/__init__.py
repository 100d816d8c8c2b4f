"""One node: the runtime around its engine, and its local backend for the OpenAI front."""

from serving.node.local_backend import LocalBackend
from serving.node.naming import NamedIdentity, NodeIdentityLike
from serving.node.runtime import NodeRuntime

__all__ = ["LocalBackend", "NamedIdentity", "NodeIdentityLike", "NodeRuntime"]
