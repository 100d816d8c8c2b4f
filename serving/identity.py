"""Who a node is: a key made at its first start, and numbers that only ever rise.

`node_id` is the hash of the public key, so nobody else can claim it once links prove possession of the key.
The state folder belongs to one process at a time: two nodes with one identity would fence each other's work.

    IdentityError
        the key cannot be read, is damaged, or its folder is in use or not allowed

A full or read-only disk is no reason for a device to stop serving: without a stored key the node then runs
under an identity that lasts as long as the process, with a warning.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_log = logging.getLogger(__name__)

KEY_FILE = "node_key.pem"
BOOTS_FILE = "boots"
LOCK_FILE = "lock"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO})
# Boot numbers are seconds since this instant (2020-01-01 UTC) where no higher one is stored, so that a node
# that lost its state folder still rises. 31 bits of them last until 2088.
_BOOTS_SINCE_S = 1_577_836_800
_CONNECTION_BITS = 32


class IdentityError(Exception):
    """The node has no usable identity; the message is one line and says what to do."""


class NodeIdentity:
    """A node's identity in this process. `ephemeral` ones are gone with the process."""

    def __init__(self, key: Ed25519PrivateKey, boot_no: int, *, ephemeral: bool, lock_fd: int | None) -> None:
        self._key = key
        self._boot_no = boot_no
        self._connections = 0
        self._lock_fd = lock_fd
        self.ephemeral = ephemeral
        self.public_key: bytes = key.public_key().public_bytes_raw()
        self.node_id: str = node_id_of(self.public_key)
        self.boot_id: str = secrets.token_hex(8)

    def next_link_epoch(self) -> int:
        """A number above all that this node gave before, over restarts too; fits 63 bits."""
        self._connections += 1
        return (self._boot_no << _CONNECTION_BITS) | self._connections

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._key.sign(data)

    def prove(self, data: bytes) -> tuple[bytes, bytes]:
        """Public key and signature: shows that `node_id` is ours."""
        return self.public_key, self.sign(data)

    def close(self) -> None:
        """Frees the state folder for another process."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None


def load_identity(state_dir: Path, wall_clock: Callable[[], float] = time.time) -> NodeIdentity:
    """The identity stored in `state_dir`, made there if there is none. Raises IdentityError."""
    key_file = state_dir / KEY_FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _lock(state_dir)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise IdentityError(f"cannot use state_dir {state_dir}: {error.strerror}") from error
        lock_fd = None
    try:
        key, ephemeral = _stored_or_new_key(key_file)
        boot_no = _next_boot(state_dir / BOOTS_FILE, wall_clock())
    except BaseException:
        if lock_fd is not None:
            os.close(lock_fd)
        raise
    return NodeIdentity(key, boot_no, ephemeral=ephemeral, lock_fd=lock_fd)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` so that a reader, or a power cut, sees the old or the new content. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            with os.fdopen(fd, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    finally:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(state_dir: Path) -> int:
    fd = os.open(state_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise IdentityError(
            f"state_dir {state_dir} is in use by a running node: stop it, or give this one another state_dir"
        ) from None
    except OSError:
        os.close(fd)
        raise
    return fd


def _stored_or_new_key(key_file: Path) -> tuple[Ed25519PrivateKey, bool]:
    try:
        return _read_key(key_file), False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IdentityError(f"cannot read the node's key {key_file}: {error.strerror}") from error
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        write_atomically(key_file, pem)
    except OSError as error:
        if error.errno not in _NO_ROOM and not isinstance(error, FileNotFoundError):
            raise IdentityError(f"cannot store the node's key in {key_file}: {error.strerror}") from error
        _log.warning(
            "no room for the node's key: this identity ends with the process",
            extra={"file": str(key_file), "cause": error.strerror},
        )
        return key, True
    return key, False


def _read_key(key_file: Path) -> Ed25519PrivateKey:
    pem = key_file.read_bytes()
    if key_file.stat().st_mode & 0o077:
        _log.warning("the node's key is readable by others: chmod 600 it", extra={"file": str(key_file)})
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityError(
            f"the node's key {key_file} is damaged: restore it, or remove it and the node joins as a new one"
        )
    return key


def _next_boot(boots_file: Path, now_s: float) -> int:
    """One above the stored number, and never below the clock's; storing it is best effort."""
    try:
        stored = int(boots_file.read_text())
    except (OSError, ValueError):
        stored = 0
    clock = max(0, int(now_s) - _BOOTS_SINCE_S)
    # A stored number far above the clock comes from damage or a clock that once ran years ahead; it must
    # still rise, but not past what 31 bits hold.
    boot_no = min(max(stored + 1, clock), 2**31 - 1)
    try:
        write_atomically(boots_file, f"{boot_no}\n".encode())
    except OSError as error:
        _log.warning("cannot store the boot number: the clock stands in", extra={"cause": error.strerror})
    return boot_no


def node_id_of(public_key: bytes) -> str:
    """The id that only this key's owner can prove: 32 hexadecimal digits of the key's SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def is_proven(node_id: str, public_key: bytes, signature: bytes, data: bytes) -> bool:
    """True when `signature` is the key's over `data`, and the key's id is `node_id`."""
    if node_id_of(public_key) != node_id:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
