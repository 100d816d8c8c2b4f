"""gRPC channels and servers with Tidegate's settings, for the client and for the link of a node."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

Option = tuple[str, int | str]

KEEPALIVE_TIME_MS = 5_000
KEEPALIVE_TIMEOUT_MS = 3_000
MAX_RECEIVE_BYTES = 16 * 1024 * 1024
MAX_RECONNECT_BACKOFF_MS = 5_000
# Bounds what the path swallows beyond the reach of our own send queue.
LINK_LOOKAHEAD_BYTES = 32_768


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """PEM bytes. Without `ca_pem` the system's roots are trusted; certificate and key go together."""

    ca_pem: bytes | None = None
    cert_pem: bytes | None = None
    key_pem: bytes | None = field(default=None, repr=False)
    # Name expected in the server's certificate, where it differs from the address dialled.
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert_pem is None) != (self.key_pem is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")

    @classmethod
    def from_files(
        cls,
        *,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        server_name: str = "",
    ) -> TlsConfig:
        """Raises OSError when a file cannot be read."""
        return cls(
            ca_pem=None if ca is None else Path(ca).read_bytes(),
            cert_pem=None if cert is None else Path(cert).read_bytes(),
            key_pem=None if key is None else Path(key).read_bytes(),
            server_name=server_name,
        )

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.cert_pem)


def channel_options(
    *,
    own_connection: bool = False,
    small_window: bool = False,
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
    max_reconnect_backoff_ms: int = MAX_RECONNECT_BACKOFF_MS,
    server_name: str = "",
) -> list[Option]:
    """See open_channel."""
    options: list[Option] = [
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Keepalive alone took 65 s to find a frozen peer: the transport's own ping has another limit.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", max_receive_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name this is also how long one try to connect may take.
        ("grpc.min_reconnect_backoff_ms", 3_000),
        ("grpc.max_reconnect_backoff_ms", max_reconnect_backoff_ms),
        # Retries are ours: bounded by the caller's deadline and counted.
        ("grpc.enable_retries", 0),
        ("grpc.primary_user_agent", "tidegate-python"),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    if small_window:
        options += [
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", LINK_LOOKAHEAD_BYTES),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def server_options(
    *,
    small_window: bool = False,
    max_concurrent_streams: int = 0,
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
) -> list[Option]:
    """Options of a server that these channels dial: its ping policy must allow their keepalive.

    `max_concurrent_streams` per connection, 0 for no limit. so_reuseport is off: a port that another
    process holds is an error, not a silent share.
    """
    options: list[Option] = [
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.max_receive_message_length", max_receive_bytes),
        ("grpc.max_send_message_length", max_receive_bytes),
    ]
    if max_concurrent_streams:
        options.append(("grpc.max_concurrent_streams", max_concurrent_streams))
    if small_window:
        options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", LINK_LOOKAHEAD_BYTES)]
    return options


def open_channel(
    address: str,
    *,
    tls: TlsConfig | None = None,
    own_connection: bool = False,
    small_window: bool = False,
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
    max_reconnect_backoff_ms: int = MAX_RECONNECT_BACKOFF_MS,
) -> grpc.aio.Channel:
    """A grpc.aio channel; dials on first use.

    `own_connection`: channels of one process to one address share a connection unless each asks for its own.
    `small_window`: at most about 32 KiB on the way, so that nothing urgent waits behind bulk (the node link).
    """
    options = channel_options(
        own_connection=own_connection,
        small_window=small_window,
        max_receive_bytes=max_receive_bytes,
        max_reconnect_backoff_ms=max_reconnect_backoff_ms,
        server_name=tls.server_name if tls else "",
    )
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)


def open_sync_channel(
    address: str,
    *,
    tls: TlsConfig | None = None,
    own_connection: bool = False,
    max_receive_bytes: int = MAX_RECEIVE_BYTES,
    max_reconnect_backoff_ms: int = MAX_RECONNECT_BACKOFF_MS,
) -> grpc.Channel:
    """The same for blocking code."""
    options = channel_options(
        own_connection=own_connection,
        max_receive_bytes=max_receive_bytes,
        max_reconnect_backoff_ms=max_reconnect_backoff_ms,
        server_name=tls.server_name if tls else "",
    )
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)
