"""Where what was learned is kept: one small file for each engine, replaced whole, so that a reader finds the old one or
the new one and never half of one. A file that is broken, or cannot be written, is worth a warning and nothing more.
"""

import logging
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

from gateway.pricing.snapshot import MAX_BYTES, CostSnapshot

logger = logging.getLogger("fairlane")


def default_path(base_url: str) -> Path:
    """Where a service manager says that state belongs, else where the XDG Base Directory Specification does."""
    if given := os.environ.get("STATE_DIRECTORY"):  # systemd: one or several, divided by colons
        folder = Path(given.partition(":")[0])
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fairlane"
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', base_url.partition('://')[2]).strip('-')}.json"


def chosen_path(state_file: Literal["auto", "off"] | Path, base_url: str) -> Path | None:
    """Where the setting has it, for the engine of this URL; None where nothing is kept."""
    match state_file:
        case "off":
            return None
        case "auto":
            return default_path(base_url)
        case path:
            return path


class StateFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._complained = False
        self._known: tuple[int, int] | None = None  # the file as it was when last read or written here

    def read(self) -> CostSnapshot | None:
        """What was kept; None if there is nothing, or nothing that can be used."""
        self._known = self._there()
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            return CostSnapshot.read(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s: what was learned earlier cannot be used, learning starts anew (%s)", self.path, error)
            return None

    def replaced(self) -> bool:
        """Whether somebody else has written it since it was last read or written here. Blocks, too."""
        there = self._there()
        return there is not None and there != self._known

    def write(self, learned: CostSnapshot) -> bool:
        """Whether it is kept. Blocks: call it off the event loop."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with open(descriptor, "wb") as file:
                    if os.geteuid() == 0:  # who calibrates for a service, whose folder it is
                        folder = self.path.parent.stat()
                        os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
                    file.write(learned.write())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self.path)
                self._known = self._there()
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            if not self._complained:
                logger.warning("%s: what is learned cannot be kept: %s (said once)", self.path, error)
                self._complained = True
            return False
        self._complained = False
        return True

    def _there(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns
