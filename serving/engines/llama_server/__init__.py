"""llama-server, or another OpenAI-compatible server, started and kept alive by the node itself."""

from serving.engines.llama_server.engine import LlamaServerEngine
from serving.engines.llama_server.settings import LlamaServerSettings

__all__ = ["LlamaServerEngine", "LlamaServerSettings"]
