"""A node keeps its identity, its numbers rise, and nothing it finds on disk makes it someone else."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import serving.identity
from serving.identity import BOOTS_FILE, KEY_FILE, IdentityError, load_identity, write_atomically

NOW_S = 1_800_000_000.0


def reload(state_dir: Path, now_s: float = NOW_S) -> tuple[str, str, int]:
    identity = load_identity(state_dir, lambda: now_s)
    try:
        return identity.node_id, identity.boot_id, identity.next_link_epoch()
    finally:
        identity.close()


def test_same_node_new_boot(tmp_path: Path) -> None:
    first, second = reload(tmp_path / "a"), reload(tmp_path / "a")
    assert first[0] == second[0]
    assert len(first[0]) == 32
    assert first[1] != second[1]
    assert reload(tmp_path / "b")[0] != first[0]


def test_key_is_private_and_signs(tmp_path: Path) -> None:
    identity = load_identity(tmp_path, lambda: NOW_S)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    Ed25519PublicKey.from_public_bytes(identity.public_key).verify(identity.sign(b"x"), b"x")
    identity.close()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_link_epochs_rise_within_and_across_boots(tmp_path: Path) -> None:
    identity = load_identity(tmp_path, lambda: NOW_S)
    epochs = [identity.next_link_epoch() for _ in range(3)]
    identity.close()
    epochs.append(reload(tmp_path)[2])
    epochs.append(reload(tmp_path, now_s=0.0)[2])  # the clock went back
    assert epochs == sorted(set(epochs))
    assert epochs[-1] < 2**63


def test_lost_boot_number_does_not_go_back(tmp_path: Path) -> None:
    before = reload(tmp_path, NOW_S)[2]
    (tmp_path / BOOTS_FILE).write_text("garbage")
    assert reload(tmp_path, NOW_S + 1)[2] > before
    (tmp_path / BOOTS_FILE).write_text("9" * 30)
    assert reload(tmp_path)[2] < 2**63


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_damaged_key_is_an_error_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    with pytest.raises(IdentityError, match="is damaged"):
        load_identity(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == content


def test_one_state_folder_serves_one_node(tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    with pytest.raises(IdentityError, match="in use by a running node"):
        load_identity(tmp_path)
    identity.close()
    load_identity(tmp_path).close()


def test_state_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(IdentityError, match="cannot use state_dir"):
        load_identity(tmp_path / "f")


def test_full_disk_gives_an_identity_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes, mode: int = 0o600) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(serving.identity, "write_atomically", full)
        identity = load_identity(tmp_path, lambda: NOW_S)
    assert identity.ephemeral
    assert identity.next_link_epoch() > 0
    assert "ends with the process" in caplog.text
    identity.close()
    kept = load_identity(tmp_path, lambda: NOW_S)
    assert not kept.ephemeral
    kept.close()


def test_folder_without_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, data: bytes, mode: int = 0o600) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serving.identity, "write_atomically", forbidden)
    with pytest.raises(IdentityError, match="cannot store the node's key"):
        load_identity(tmp_path)


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x"
    write_atomically(file, b"old")

    def no_sync(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_sync)
        with pytest.raises(OSError, match="No space"):
            write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
