"""Where a figure comes from: what it takes to have it again, and to know what it is worth."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SECRET_OPTIONS = ("--api-key", "upstream_key")


def provenance(**more: str) -> dict[str, str]:
    """The command, the version, the machine; and what the caller adds. Nothing secret."""
    return {
        "command": command_line(sys.argv[1:]),
        "fairlane": version("fairlane") + _commit(),
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} x {_processor()}, {platform.system()} {platform.machine()}",
        **{name: value for name, value in more.items() if value},
    }


def command_line(arguments: list[str]) -> str:
    """As it may be typed again, without its secrets."""
    shown, hide = [], False
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--set=").partition("=")
        shown.append("..." if hide else f"{name}=..." if equals and name in SECRET_OPTIONS else argument)
        hide = argument in SECRET_OPTIONS
    return f"fairlane {shlex.join(shown)}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or "unknown processor")


def _commit() -> str:
    """Of a checkout that this runs from."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "rev-parse", "--short=10", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {found.stdout.strip()}"
