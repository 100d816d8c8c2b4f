"""llama.cpp in a child process: `engine.LlamaCppEngine` in the daemon, `child` and its imports in the child.

The parent's modules (engine, ledger, process, settings, gguf_check, catalog) never import llama_cpp: a
daemon stays small and survives whatever the native code does. Nothing is imported here, so that the child
does not carry the parent's modules either.
"""
