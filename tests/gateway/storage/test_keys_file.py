"""The keys file on disk: atomic changes, one writer at a time, and reloading."""

import os
import threading
from pathlib import Path

import pytest

from gateway.identity.keys import Key, KeysError, key_digest, with_key, without_key
from gateway.storage.keys_file import KeysFile, change, read_keys_file


def key(name: str) -> Key:
    return Key(digest=key_digest(name), owner=name)


def add(path: Path, name: str) -> None:
    change(path, lambda text: with_key(text, key(name)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def test_a_new_file_is_readable_by_its_owner_only(path: Path) -> None:
    add(path, "ann")
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys_file(path) == (key("ann"),)


@pytest.mark.parametrize(("mode", "after"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o640), (0o666, 0o660)])
def test_a_change_keeps_the_mode_without_access_for_others(path: Path, mode: int, after: int) -> None:
    """A group that may read it goes on doing so: the gateway's, where an admin changes the file."""
    add(path, "ann")
    path.chmod(mode)
    add(path, "ben")
    assert path.stat().st_mode & 0o777 == after


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_change_keeps_the_owner(path: Path) -> None:
    add(path, "ann")
    os.chown(path, 65534, 65534)
    add(path, "ben")
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_a_change_keeps_a_symbolic_link(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    add(link, "ann")
    assert link.is_symlink()
    assert read_keys_file(path) == (key("ann"),)


def test_concurrent_writers_lose_nothing(path: Path) -> None:
    """Each reads what the one before has written: without the lock most would be overwritten."""
    names = [f"{n}" for n in range(40)]
    threads = [threading.Thread(target=add, args=(path, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.owner for each in read_keys_file(path)} == set(names)


def test_a_failed_change_leaves_only_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(path, "ann")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            add(path, "ben")
    with pytest.raises(KeysError, match="no key"):
        change(path, lambda text: without_key(text, "00000000"))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_readers_see_the_old_or_the_new_file_whole(path: Path) -> None:
    """Never a file that is half there: read again and again, while it is written again and again."""
    add(path, "ann")
    done = threading.Event()
    seen: set[int] = set()

    def watch() -> None:
        while not done.is_set():
            seen.add(len(read_keys_file(path)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for _ in range(50):
            add(path, "ben" * 1000)
            change(path, lambda text: without_key(text, key("ben" * 1000).id))
    finally:
        done.set()
        watching.join()
    assert seen <= {1, 2}


def test_only_a_changed_file_is_read_again(path: Path) -> None:
    file = KeysFile(path)
    assert not file.refresh()
    add(path, "ann")
    assert file.refresh()
    assert not file.refresh()
    assert file.keys == (key("ann"),)
    path.unlink()
    assert file.refresh()
    assert not file.keys


def test_an_unusable_file_is_logged_once(path: Path) -> None:
    add(path, "ann")
    file = KeysFile(path)
    file.refresh()
    path.write_text("nonsense")
    with pytest.raises(KeysError, match=f"^{path}: line 1: "):
        file.refresh()
    assert not file.refresh()
    assert file.keys == (key("ann"),)
    path.write_bytes(b"\xff")
    with pytest.raises(KeysError, match="not UTF-8"):
        file.refresh()
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        file.refresh()
    assert file.keys == (key("ann"),)


def test_a_missing_file_has_no_keys() -> None:
    file = KeysFile(None)
    assert not file.refresh()
    assert file.keys == ()
