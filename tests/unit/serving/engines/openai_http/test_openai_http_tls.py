"""A server with a certificate of a private CA."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai_http_rig import running, settings, work
from openai_stub import Stub

from serving.engines.base import EngineUnavailable
from serving.engines.openai_http import OpenAiHttpEngine
from tidegate.routing.domain import FinishReason


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate of 127.0.0.1, signed by itself, and its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stub")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "stub.pem"
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    return path


async def test_a_private_ca_is_trusted_only_when_it_is_named(stub: Stub, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    await stub.down()
    await stub.up(context)
    async with running(stub, ca_file=str(certificate)) as rig:
        assert (await rig.run(work())).result is FinishReason.STOP
    with pytest.raises(EngineUnavailable) as error:
        await OpenAiHttpEngine(settings(stub)).start()
    assert "certificate" in str(error.value)


async def test_the_systems_authorities_are_trusted_when_none_is_named(
    stub: Stub, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    await stub.down()
    await stub.up(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with running(stub) as rig:
        assert (await rig.run(work())).result is FinishReason.STOP
