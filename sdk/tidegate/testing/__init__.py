"""Real in-process servers for the tests of programs that use Tidegate."""

from tidegate.testing.fake_gateway import FakeGateway, serve_in_thread
from tidegate.testing.script import Fail, Hang, Pause, Step, Together, answer, default_route

__all__ = [
    "Fail",
    "FakeGateway",
    "Hang",
    "Pause",
    "Step",
    "Together",
    "answer",
    "default_route",
    "serve_in_thread",
]
