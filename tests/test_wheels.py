"""Everything in requirements.lock installs on a DGX Spark (aarch64 Linux) without a compiler.

The proof is the install itself: uv puts another machine's wheels into a folder that is thrown away, and
checks them against the lock's hashes as pip would there.
"""

import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest

from tests.support.repository import ROOT

LOCK = ROOT / "requirements.lock"


def install(*what: str, python: str, machine: str) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as target:  # not tmp_path, which pytest would keep
        return subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "install", "--target", target),
                *("--python-version", python),
                *("--python-platform", f"{machine}-manylinux_2_39"),  # the Spark's glibc
                *("--no-deps", "--only-binary", ":all:", *what),
            ],
            capture_output=True,
            text=True,
        )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_installs_on_a_spark(python: str) -> None:
    done = install("--require-hashes", "--requirement", str(LOCK), python=python, machine="aarch64")
    assert done.returncode == 0, done.stderr
    assert "uvloop" in done.stderr  # uv says there what it installed


@pytest.mark.timeout(120)
def test_a_package_without_an_aarch64_wheel_is_detected() -> None:
    x86_only = "tcmlib==1.4.0"
    assert install("--dry-run", x86_only, python="3.12", machine="x86_64").returncode == 0
    done = install("--dry-run", x86_only, python="3.12", machine="aarch64")
    assert done.returncode != 0
    assert "no wheels with a matching platform tag" in done.stderr
