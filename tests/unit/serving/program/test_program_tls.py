"""Certificates from settings; a bad file is one line that names the key and the file."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from serving.settings import ClientTlsSettings, SettingsError, TlsSettings
from serving.tls import client_tls, server_ssl_context


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """What a client reads from a TLS server on a free port. Raises ssl.SSLError."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=client, server_hostname="localhost"
        )
        try:
            return await reader.read()
        finally:
            writer.close()


async def test_a_listener_with_a_certificate(certificates) -> None:  # type: ignore[no-untyped-def]
    server = server_ssl_context(certificates.tls, "http.tls")
    assert await handshake(server, ssl.create_default_context(cafile=str(certificates.ca))) == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        await handshake(server, ssl.create_default_context())


async def test_a_listener_that_wants_a_client_certificate(certificates) -> None:  # type: ignore[no-untyped-def]
    tls = certificates.tls.model_copy(update={"client_ca_file": certificates.ca})
    server = server_ssl_context(tls, "http.tls")
    client = ssl.create_default_context(cafile=str(certificates.ca))
    client.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 tells only after the handshake
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await handshake(server, client)
    client.load_cert_chain(certificates.cert, certificates.key)
    assert await handshake(server, client) == b"hello"


def test_files_that_do_not_work(certificates, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError, match=r"http\.tls\.cert_file: cannot read .*none: No such file"):
        server_ssl_context(TlsSettings(cert_file=tmp_path / "none", key_file=certificates.key), "http.tls")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("not a key")
    with pytest.raises(SettingsError, match=r"http\.tls\.key_file: .*rubbish is not a PEM file"):
        server_ssl_context(TlsSettings(cert_file=certificates.cert, key_file=rubbish), "http.tls")
    with pytest.raises(SettingsError, match=r"http\.tls: certificate and key do not work together"):
        server_ssl_context(
            TlsSettings(cert_file=certificates.cert, key_file=certificates.other_key), "http.tls"
        )


def test_client_side(certificates) -> None:  # type: ignore[no-untyped-def]
    made = client_tls(ClientTlsSettings(ca_file=certificates.ca, server_name="gw"), "link.tls")
    assert made.ca_pem == certificates.ca.read_bytes()
    assert (made.cert_pem, made.server_name) == (None, "gw")
    with pytest.raises(SettingsError, match=r"link\.tls: cert_file and key_file go together"):
        client_tls(ClientTlsSettings(cert_file=certificates.cert), "link.tls")
    both = ClientTlsSettings(cert_file=certificates.cert, key_file=certificates.key)
    assert client_tls(both, "link.tls").key_pem == certificates.key.read_bytes()
    assert "PRIVATE" not in repr(client_tls(both, "link.tls"))
