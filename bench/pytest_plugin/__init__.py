"""The pytest plugin: robust accuracy as an assertion of the user's own tests.

    def test_robust(robustness):
        robustness(model, x, y, attack="pgd", norm="linf", eps=0.1).at_least(0.80)

    @pytest.mark.robustness(suite="tests/robust.toml")
    def test_suite(robustness):
        robustness.suite(limit=100).at_least(0.60)

Installed with bench and idle until a test asks for the fixture; nothing heavy is imported before.
A test that does carries the marker `robustness`: `pytest -m robustness` selects them. What a failed
assertion saw is saved under `--robustness-dir`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bench.pytest_plugin.assertions import RobustnessAssertion

MARKER = "robustness"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --robustness-dir.

    Args:
        parser: pytest's parser.
    """
    group = parser.getgroup("bench", "robust accuracy, measured by bench")
    group.addoption(
        "--robustness-dir",
        default="robustness-report",
        metavar="DIR",
        help="where the fooled examples and records of a failed assertion and the runs of suites "
        "are kept, a folder for each test (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `robustness`.

    Args:
        config: pytest's configuration.
    """
    config.addinivalue_line(
        "markers",
        f"{MARKER}(suite=None): a test that asks for the fixture `robustness`, set by the plugin; "
        "`suite` is what `robustness.suite()` runs",
    )


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that use the fixture.

    Args:
        items: The collected tests.
    """
    for item in items:
        if MARKER in getattr(item, "fixturenames", ()) and not item.get_closest_marker(MARKER):
            item.add_marker(MARKER)


class RobustnessFixture:
    """The value of the fixture: call it to attack a model, or run a suite by `suite`."""

    def __init__(self, folder: Path, suite: str | None, note: Callable[[str, object], None]):
        self._folder, self._suite, self._note, self._asked = folder, suite, note, 0

    def __call__(self, model: Any, x: Any, y: Any = None, **settings: Any) -> "RobustnessAssertion":
        """Attack the model on (x, y); data, settings and errors are those of `bench.evaluate`."""
        from bench.pytest_plugin import assertions

        return assertions.measure_model(model, x, y, settings, self._next(), self._note)

    def suite(self, suite: str | None = None, **settings: Any) -> "RobustnessAssertion":
        """Run a suite and take the worst case over its attacks.

        Args:
            suite: Path or name of a shipped suite; that of the marker by default.
            settings: Keyword arguments of `bench.run`.

        Returns:
            One level of robust accuracy for each model, norm and eps.

        Raises:
            pytest.UsageError: No suite was named.
        """
        from bench.pytest_plugin import assertions

        chosen = suite or self._suite
        if chosen is None:
            raise pytest.UsageError(
                "robustness.suite: expected a suite, as an argument or by "
                f"@pytest.mark.{MARKER}(suite=...), got neither"
            )
        return assertions.measure_suite(chosen, settings, self._next(), self._note)

    def _next(self) -> Path:
        """Choose a folder for each use of the fixture in a test."""
        self._asked += 1
        return self._folder / str(self._asked) if self._asked > 1 else self._folder


@pytest.fixture
def robustness(request: pytest.FixtureRequest) -> RobustnessFixture:
    """Measure robust accuracy: `robustness(model, x, y, eps=0.1).at_least(0.8)`.

    Args:
        request: pytest's request.

    Returns:
        A callable that attacks a model; its method `suite` runs a suite.
    """
    from bench.core.files import slug

    marker = request.node.get_closest_marker(MARKER)
    suite = marker.kwargs.get("suite") if marker else None
    where = Path(request.config.getoption("--robustness-dir"))
    place = where if where.is_absolute() else request.config.rootpath / where
    note = request.node.user_properties.append
    return RobustnessFixture(
        place / slug(request.node.nodeid), suite, lambda name, value: note((name, value))
    )
