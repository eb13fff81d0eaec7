"""The keys file on disk: read when it has changed, written so that a crash or a second writer loses nothing."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.identity.keys import Key, KeysError, read_keys


class KeysFile:
    """The keys of a file as they were when it was last read; of no file, none."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.keys: tuple[Key, ...] = ()
        self._read: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Read the file if it is not the one that was read last; whether that was so.

        Raises KeysError and OSError, once for each state of the file that cannot be used; the keys stay as they were. A
        file that is not there has no keys: who deletes it revokes them all.
        """
        if self.path is None:
            return False
        # Looked at before it is read: what changes in between is read the next time.
        state = _state(self.path)
        if state == self._read:
            return False
        self._read = state
        self.keys = read_keys_file(self.path)
        return True


def read_keys_file(path: Path) -> tuple[Key, ...]:
    """Raises KeysError and OSError."""
    with _naming(path):
        return read_keys(_text(path))


def change(path: Path, edit: Callable[[str], str]) -> None:
    """Let `edit` make a new text of the file's. Others see the old file or the new one, whole, at any time.

    Raises KeysError and OSError; then the file is as it was.
    """
    path = path.resolve()  # a link stays a link
    with _alone(path.parent), _naming(path):
        text = edit(_text(path))
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                _take_after(path, file.fileno())
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time. The folder is locked, since the file is another one after each change."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)  # the new name is on disk, too
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise KeysError(f"{path} is not UTF-8: {error}") from error
    except KeysError as error:
        raise KeysError(f"{path}: {error}") from error


def _take_after(path: Path, descriptor: int) -> None:
    """Owner and mode stay: root may change a file that the gateway's own user must be able to read."""
    if path.exists():
        before = path.stat()
        if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, before.st_mode & 0o660)  # for nobody else, whatever it was


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
