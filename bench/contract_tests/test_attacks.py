"""Every attack of an installed package against the contract of attacks."""

import pytest

from bench.contract_tests.attack_contract import *  # noqa: F403
from bench.core import registry
from bench.core.errors import SuiteError


def _usable() -> list[str]:
    """Return the attacks that can be imported; `test_extensions` names the others."""
    found = []
    for name, extension in registry.discover("attacks").usable.items():
        try:
            registry.load_extension(extension)
        except SuiteError:
            continue
        found.append(name)
    return found


NAMES = _usable()
if not NAMES:
    pytest.skip("no installed package offers an attack", allow_module_level=True)
