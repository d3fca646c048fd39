"""Assert a lower bound of the robust accuracy, for the fixture `robustness`.

The accuracy is measured (`bench.pytest_plugin.measurements`) when it is first asked for, so that a
bound that no accuracy can be compared with is refused before an attack runs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bench.core.errors import ContractError, RecordError, SuiteError
from bench.models.fingerprint import fingerprint
from bench.pytest_plugin.measurements import Level, Measurement, format_interval
from bench.reporting.formats.numbers import format_percent, format_plural

MAX_LISTED = 8
"""Fooled examples that a message names."""


class RobustnessAssertion:
    """Robust accuracy at one or several eps, to assert a lower bound of."""

    def __init__(
        self,
        measure: Callable[[], Measurement],
        radii: Collection[float] | None,
        inputs: Sequence[Any] = (),
    ) -> None:
        """Prepare a measurement.

        Args:
            measure: Attacks the model.
            radii: The eps that can be asked for; None if only the measurement knows them.
            inputs: Model and tensors of the user, which must not change before the measurement.
        """
        self._measure, self._radii, self._inputs = measure, radii, inputs
        self._state = [_describe_state(value) for value in inputs]
        self._measurement: Measurement | None = None
        self.is_used = False
        """Whether a bound was asserted, or the accuracy asked for."""

    @property
    def levels(self) -> Sequence[Level]:
        """Robust accuracy at each eps."""
        __tracebackhide__ = True
        return self._measure_once().levels

    @property
    def findings(self) -> Sequence[str]:
        """Reasons to doubt the numbers, a sentence each: of preflight and of the audit."""
        __tracebackhide__ = True
        return self._measure_once().findings

    def at_least(self, share: float | Mapping[float, float], *, confident: bool = False) -> None:
        """Assert a lower bound of the robust accuracy.

        Args:
            share: Required share of robust examples in [0, 1], at every eps, or one per eps.
            confident: Compare the lower end of the 95 % interval, so that a small sample does not
                pass by chance.

        Raises:
            AssertionError: The accuracy is lower, or images violate the threat model; the message
                names the difference and the first fooled examples.
            ValueError: A share is outside [0, 1], or an eps is not measured; no attack was run.
            SuiteError: A mistake in the arguments of the fixture.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not this one
        self.is_used = True
        _check_bound(share, self._radii)
        levels = self.levels
        wanted = _assign_bounds(share, [level.eps for level in levels])
        spoilt = [level for level in levels if level.eps in wanted and level.violations]
        short = [
            level
            for level in levels
            if level.eps in wanted and _reached(level, confident) < wanted[level.eps] - 1e-12
        ]
        if not spoilt and not short:
            return
        lines = [
            f"{level.where}: {format_plural(level.violations, 'image')} broke the threat model, so "
            "the robust accuracy is not to be relied on"
            for level in spoilt
        ]
        lines += [_describe_shortfall(level, wanted[level.eps], confident) for level in short]
        lines += [f"Beware: {finding}" for finding in self.findings]
        raise AssertionError("\n".join([*lines, f"Seen: {self._measure_once().save()}"]))

    def _measure_once(self) -> Measurement:
        """Attack the model; a mistake of the user is raised without bench's own frames."""
        __tracebackhide__ = True
        if self._measurement is not None:
            return self._measurement
        self.is_used = True
        if [_describe_state(value) for value in self._inputs] != self._state:
            raise ValueError(
                "robustness: expected the model and the data that it was called with, got changed "
                "ones; the attack runs when at_least is called, so call it before they change"
            )
        try:
            self._measurement = self._measure()
            return self._measurement
        except (SuiteError, ContractError, RecordError, AssertionError) as error:
            raise error.with_traceback(None) from None


def _check_bound(share: float | Mapping[float, float], radii: Collection[float] | None) -> None:
    __tracebackhide__ = True
    wanted = share if isinstance(share, Mapping) else {None: share}
    for eps, least in wanted.items():
        if eps is not None and radii is not None and eps not in radii:
            raise ValueError(f"at_least: expected an eps of {sorted(radii)}, got {eps}")
        if not 0 <= least <= 1:
            raise ValueError(f"at_least: expected a share in [0, 1], got {least}")


def _assign_bounds(
    share: float | Mapping[float, float], measured: Collection[float]
) -> dict[float, float]:
    __tracebackhide__ = True
    _check_bound(share, set(measured))
    return dict(share) if isinstance(share, Mapping) else dict.fromkeys(measured, share)


def _describe_state(value: Any) -> object:
    """Describe what a later change of a model or a tensor would change."""
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, Tensor) and not value.is_inference():
        return value._version
    return None


def _reached(level: Level, confident: bool) -> float:
    return level.robust.low if confident else level.robust.value


def _describe_shortfall(level: Level, wanted: float, confident: bool) -> str:
    """A level that misses what is wanted, in one line, and its first fooled examples in another."""
    k, n = level.robust.k, level.robust.n
    bound = "with 95 % confidence " if confident else ""
    sentence = (
        f"{level.where}: {k} of {n} examples are robust, {format_interval(level.robust)}, "
        f"expected at least {format_percent(wanted)} {bound}"
        f"({level.clean_correct} are right unattacked)"
    )
    if not len(level.fooled):
        return sentence
    named = [
        f"{row.example} ({row.label} → {row.adv_pred})"
        for row in level.fooled.head(MAX_LISTED).itertuples()
    ]
    rest = len(level.fooled) - len(named)
    return f"{sentence}\n  fooled: {', '.join(named)}" + (f" and {rest} more" if rest else "")
