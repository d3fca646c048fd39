"""Tests of what attacks, models and data sets promise, for packages that offer some.

    pytest --pyargs bench.contract_tests [-k NAME]

They test every extension that is installed, found by its entry points. `attack_contract` holds what
an attack owes; bench's own tests take its parts from there. Imports `api` and below.
"""

import pytest

pytest.register_assert_rewrite("bench.contract_tests.attack_contract")
