"""Importing this before anything else of aiohttp keeps 2 MB that only clients need out of a server's memory.

aiohttp reads the system's certification authorities when it is imported, for a client that names no TLS
context. Our one client (serving.engines.openai_http.upstream) always brings its own.
"""

from __future__ import annotations

import os

_NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def _import() -> None:
    """OpenSSL asks the environment where they are."""
    kept = {name: os.environ.get(name) for name in _NAMES}
    os.environ.update(dict.fromkeys(_NAMES, os.devnull))
    try:
        import aiohttp.connector  # noqa: F401
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_import()
