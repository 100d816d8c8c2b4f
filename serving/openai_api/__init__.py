"""The OpenAI HTTP front over one seam, used by the gateway and by the edge daemon alike."""

from serving.openai_api.app import build_routes, make_runner
from serving.openai_api.backend import Authenticator, Caller, GenerateBackend, ModelCard
from serving.openai_api.guard import local_guard
from serving.openai_api.options import FrontOptions

__all__ = [
    "Authenticator",
    "Caller",
    "FrontOptions",
    "GenerateBackend",
    "ModelCard",
    "build_routes",
    "local_guard",
    "make_runner",
]
