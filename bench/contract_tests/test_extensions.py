"""Every extension of an installed package: its name is free and its object can be imported."""

from collections.abc import Callable

import pytest

from bench.reporting import trackers
from bench.reporting.formats import registered
from bench.suite import catalog

LISTS: dict[str, Callable[[], list[str]]] = {
    "attacks": lambda: catalog.list_extensions("attacks")[1],
    "models": lambda: catalog.list_extensions("models")[1],
    "datasets": lambda: catalog.list_extensions("datasets")[1],
    "formats": lambda: registered.list_formats()[1],
    "trackers": lambda: trackers.list_trackers()[1],
}


@pytest.mark.parametrize("kind", LISTS)
def test_every_extension_can_be_used_under_its_name(kind: str) -> None:
    assert LISTS[kind]() == []
