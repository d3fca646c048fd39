"""Processes that are forked from one that has imported what a run needs, which takes seconds."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext

import pytest


@pytest.fixture(scope="session")
def warm() -> ForkServerContext:
    """Starts such processes."""
    context = multiprocessing.get_context("forkserver")
    modules = ["bench.execution.backends.process", "bench.api", "sklearn.datasets"]
    context.set_forkserver_preload(modules)
    return context


@pytest.fixture
def forked_workers(warm: ForkServerContext) -> Iterator[None]:
    """The workers of isolated runs are forked, not spawned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: warm)
        yield
