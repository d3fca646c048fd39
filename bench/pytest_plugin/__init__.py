"""The pytest plugin: robust accuracy as an assertion of the user's own tests.

    def test_robust(robustness):
        robustness(model, x, y, attack="pgd", norm="linf", eps=0.1).at_least(0.80)

    @pytest.mark.robustness(suite="tests/robust.toml")
    def test_suite(robustness):
        robustness.suite(limit=100).at_least(0.60)

Installed with bench and idle until a test asks for the fixture; nothing heavy is imported before.
A test that does carries the marker `robustness`: `pytest -m robustness` selects them. What a failed
assertion saw is saved under `--robustness-dir`. `measurements` measures, `assertions` compares.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
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
        self._made: list[RobustnessAssertion] = []

    def __call__(self, model: Any, x: Any, y: Any = None, **settings: Any) -> "RobustnessAssertion":
        """Attack the model on (x, y); data, settings and errors are those of `bench.evaluate`.

        The attack runs when the result is first asked for, as `at_least` does.
        """
        from bench import api
        from bench.pytest_plugin import measurements
        from bench.pytest_plugin.assertions import RobustnessAssertion

        __tracebackhide__ = True
        measurements.check_keywords(api.evaluate, settings)
        folder = self._next()
        return self._keep(
            RobustnessAssertion(
                lambda: measurements.measure_model(model, x, y, settings, folder, self._note),
                measurements.list_radii(settings),
                (model, x, y),
            )
        )

    def suite(self, suite: str | None = None, **settings: Any) -> "RobustnessAssertion":
        """Run a suite and take the worst case over its attacks.

        Args:
            suite: Path or name of a shipped suite; that of the marker by default.
            settings: Keyword arguments of `bench.run`.

        Returns:
            Robust accuracy for each model, norm and eps; the suite runs when it is asked for.

        Raises:
            pytest.UsageError: No suite was named.
        """
        from bench import api
        from bench.pytest_plugin import measurements
        from bench.pytest_plugin.assertions import RobustnessAssertion

        __tracebackhide__ = True
        measurements.check_keywords(api.run, settings)
        chosen = suite or self._suite
        if chosen is None:
            raise pytest.UsageError(
                "robustness.suite: expected a suite, as an argument or by "
                f"@pytest.mark.{MARKER}(suite=...), got neither"
            )
        folder = self._next()
        return self._keep(
            RobustnessAssertion(
                lambda: measurements.measure_suite(chosen, settings, folder, self._note),
                measurements.list_suite_radii(chosen),
            )
        )

    def finish(self) -> None:
        """Warn of what a test asked for and never asserted: nothing was measured for it."""
        from bench.core.errors import RobustnessWarning

        unused = sum(not each.is_used for each in self._made)
        if unused:
            warnings.warn(
                f"robustness: {unused} of {len(self._made)} calls were never asserted by at_least, "
                "so no attack was run for them",
                RobustnessWarning,
                stacklevel=2,
            )

    def _keep(self, made: "RobustnessAssertion") -> "RobustnessAssertion":
        self._made.append(made)
        return made

    def _next(self) -> Path:
        """Choose a folder for each use of the fixture in a test."""
        self._asked += 1
        return self._folder / str(self._asked) if self._asked > 1 else self._folder


@pytest.fixture
def robustness(request: pytest.FixtureRequest) -> Iterator[RobustnessFixture]:
    """Measure robust accuracy: `robustness(model, x, y, eps=0.1).at_least(0.8)`.

    Args:
        request: pytest's request.

    Yields:
        A callable that attacks a model; its method `suite` runs a suite.
    """
    from bench.core import files

    marker = request.node.get_closest_marker(MARKER)
    suite = marker.kwargs.get("suite") if marker else None
    where = Path(request.config.getoption("--robustness-dir"))
    place = where if where.is_absolute() else request.config.rootpath / where
    note = request.node.user_properties.append
    test = request.node.nodeid
    # Many names of tests give one slug: they differ in punctuation, or beyond its length.
    folder = place / f"{files.slug(test)}-{files.short_hash(test.encode())[:8]}"
    fixture = RobustnessFixture(folder, suite, lambda name, value: note((name, value)))
    yield fixture
    fixture.finish()
