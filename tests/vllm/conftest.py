"""A real vLLM for the tests of this folder, and the time limit that they need."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.vllm import FLAGS, POOLING, Vllm, run_vllm

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # those of the whole run, not of this folder alone
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.vllm)
        if item.get_closest_marker("timeout") is None:
            # The server's start is part of the first test's set-up and has a deadline of its own.
            item.add_marker(pytest.mark.timeout(120, func_only=True))


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with run_vllm(tmp_path_factory.mktemp("vllm"), *FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def pooler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with run_vllm(tmp_path_factory.mktemp("pooler"), *POOLING) as server:
        yield server
