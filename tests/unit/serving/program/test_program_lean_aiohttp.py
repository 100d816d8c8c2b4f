"""What the servers do not load."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os
import {module}
import aiohttp.connector
print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"], os.environ["SSL_CERT_FILE"])
"""


@pytest.mark.parametrize(
    ("module", "authorities"),
    [("edge_node.__main__", 0), ("gateway.__main__", 0), ("cloud_node.__main__", 1)],
)
def test_servers_hold_no_certification_authorities(
    certificates,
    module: str,
    authorities: int,  # type: ignore[no-untyped-def]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)],
        env={**os.environ, "SSL_CERT_FILE": str(certificates.ca), "SSL_CERT_DIR": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(authorities), str(certificates.ca)]
