"""The `fairlane` command in a process of its own."""

import re
import subprocess
import sys
import threading

from tests.support.waiting import DEADLINE, wait_until

COMMAND = [sys.executable, "-m", "loadtest"]


class Process:
    """A command that runs until it ends or is killed, and what it has said on stderr so far."""

    def __init__(self, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.said = ""
        self._process = subprocess.Popen(
            [*COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environ
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.said += line

    def says(self, pattern: str, seconds: float = 40.0) -> str:
        """Wait for it to say something; the first group of the pattern, or all of the match."""
        wait_until(lambda: re.search(pattern, self.said) or not self.runs, seconds, f"{pattern} is said")
        found = re.search(pattern, self.said)
        assert found, self.said
        return found[found.re.groups and 1]

    @property
    def url(self) -> str:
        """Where it serves, by its own words."""
        return self.says(r"base URL on this host +(http://\S+)/v1")

    @property
    def number(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def exit_code(self, seconds: float = DEADLINE) -> int:
        """Wait for its end."""
        code = self._process.wait(seconds)
        self._reader.join()
        return code

    def kill(self) -> None:
        self._process.kill()
        self.exit_code()
