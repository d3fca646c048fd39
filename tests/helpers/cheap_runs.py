"""Fixtures that make runs cheap where neither speed nor figures are tested.

A folder's conftest imports them. A module that tests figures defines `no_figures` anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.engine import timing
from bench.reporting.plots import figures


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> Iterator[None]:
    """Passes of few rows where a run chooses them: a model is timed, and compared with its
    accelerated model, on passes of that many rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "CACHE_BYTES", 2 * 2**20)
        yield


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Reports without figures, which take seconds to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", lambda *_, **__: [])
        yield


@contextmanager
def draw_only(argument: str) -> Iterator[None]:
    """Within this context runs draw the figures of one argument of `draw_figures` alone."""
    draw = figures.draw_figures

    def draw_these(table: Any, examples: Any, folder: Any, **given: Any) -> Any:
        return draw(table[:0], [], folder, **{argument: given[argument]})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_figures", draw_these)
        yield
