"""Certificates from settings to what the libraries take; a bad file is one clear line."""

from __future__ import annotations

import ssl
from pathlib import Path

from serving.settings import ClientTlsSettings, SettingsError, TlsSettings
from tidegate.wire.channels import TlsConfig


def server_ssl_context(tls: TlsSettings, key: str) -> ssl.SSLContext:
    """For an HTTP listener. `key` is the settings key, for the message. Raises SettingsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    read_pem(tls.cert_file, f"{key}.cert_file")
    read_pem(tls.key_file, f"{key}.key_file")
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file)
        if tls.client_ca_file is not None:
            read_pem(tls.client_ca_file, f"{key}.client_ca_file")
            context.load_verify_locations(tls.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise SettingsError(f"{key}: certificate and key do not work together: {error.reason}") from None
    return context


def client_tls(tls: ClientTlsSettings, key: str) -> TlsConfig:
    """For a program that dials out. `key` is the settings key, for the message. Raises SettingsError."""
    if (tls.cert_file is None) != (tls.key_file is None):
        raise SettingsError(f"{key}: cert_file and key_file go together")
    return TlsConfig(
        ca_pem=None if tls.ca_file is None else read_pem(tls.ca_file, f"{key}.ca_file"),
        cert_pem=None if tls.cert_file is None else read_pem(tls.cert_file, f"{key}.cert_file"),
        key_pem=None if tls.key_file is None else read_pem(tls.key_file, f"{key}.key_file"),
        server_name=tls.server_name or "",
    )


def read_pem(path: Path, key: str) -> bytes:
    """The file's bytes. Raises SettingsError when it cannot be read or holds no PEM block."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{key}: cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise SettingsError(f"{key}: {path} is not a PEM file")
    return content
