"""TLS over real loopback: the server is checked, and the client's certificate is sent."""

from __future__ import annotations

import datetime

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import tidegate
from tidegate.testing import FakeGateway

ONE_TRY = tidegate.RetryPolicy(attempts=1)


def _self_signed(name: str) -> tuple[bytes, bytes]:
    """(certificate, key) in PEM; the certificate is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        cert.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


@pytest.fixture(scope="module")
def server_pair() -> tuple[bytes, bytes]:
    return _self_signed("gateway.test")


async def test_a_pinned_server_is_reached_and_another_is_not(server_pair: tuple[bytes, bytes]) -> None:
    cert, key = server_pair
    credentials = grpc.ssl_server_credentials([(key, cert)])
    other, _ = _self_signed("gateway.test")
    async with FakeGateway(server_credentials=credentials) as gateway:
        good = tidegate.TlsConfig(ca_pem=cert, server_name="gateway.test")
        async with tidegate.Client(gateway.address, tls=good) as client:
            assert (await client.complete("a b")).text == "ab"
        for bad in (
            tidegate.TlsConfig(ca_pem=other, server_name="gateway.test"),
            tidegate.TlsConfig(ca_pem=cert, server_name="elsewhere.test"),
            None,
        ):
            async with tidegate.Client(gateway.address, tls=bad, retry=ONE_TRY) as client:
                with pytest.raises(tidegate.Unavailable):
                    await client.nodes(deadline_s=5)
        assert gateway.calls == 1


async def test_the_clients_certificate_is_asked_for_and_sent(server_pair: tuple[bytes, bytes]) -> None:
    cert, key = server_pair
    client_cert, client_key = _self_signed("client.test")
    credentials = grpc.ssl_server_credentials([(key, cert)], client_cert, require_client_auth=True)
    async with FakeGateway(server_credentials=credentials) as gateway:
        mutual = tidegate.TlsConfig(cert, client_cert, client_key, server_name="gateway.test")
        async with tidegate.Client(gateway.address, tls=mutual) as client:
            assert await client.nodes() == ()
        bare = tidegate.TlsConfig(cert, server_name="gateway.test")
        async with tidegate.Client(gateway.address, tls=bare, retry=ONE_TRY) as client:
            with pytest.raises(tidegate.Unavailable):
                await client.nodes(deadline_s=5)
