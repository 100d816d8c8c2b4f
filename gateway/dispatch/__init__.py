"""Taking a request from its arrival to its last token: analysis, decision, attempts, facts out."""

from gateway.dispatch.dispatcher import Dispatcher, DispatchOptions
from gateway.dispatch.levels import DataClasses, Levels

__all__ = ["DataClasses", "DispatchOptions", "Dispatcher", "Levels"]
