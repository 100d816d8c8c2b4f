"""An engine in front of any OpenAI-compatible HTTP server: vLLM, SGLang, llama-server and their like."""

from serving.engines.openai_http.engine import OpenAiHttpEngine
from serving.engines.openai_http.settings import OpenAiHttpSettings, unnamed_digest

__all__ = ["OpenAiHttpEngine", "OpenAiHttpSettings", "unnamed_digest"]
