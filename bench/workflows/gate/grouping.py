"""Group the verdicts of one cause, so that people read its sentence once."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from bench.workflows.gate.verdicts import Outcome, Verdict


class VerdictGroup(NamedTuple):
    """Verdicts with the same outcome and sentence, such as all cells of a run on other data."""

    verdicts: list[Verdict]

    @property
    def outcome(self) -> Outcome:
        """The outcome of all of them."""
        return self.verdicts[0].outcome

    @property
    def sentence(self) -> str:
        """The sentence of all of them."""
        return self.verdicts[0].sentence

    @property
    def gates(self) -> str:
        """Their gates, separated by commas."""
        return ", ".join(dict.fromkeys(verdict.gate for verdict in self.verdicts))

    @property
    def where(self) -> str:
        """Their models and attacks, each attack on a model with all its eps."""
        places: dict[tuple[str, str], dict[str, None]] = {}
        for verdict in self.verdicts:
            radii = places.setdefault((verdict.model, verdict.attack), {})
            if verdict.eps:
                radii[verdict.eps] = None
        return "; ".join(_describe_place(*place, [*radii]) for place, radii in places.items())


def _describe_place(model: str, attack: str, radii: Sequence[str]) -> str:
    eps = f"eps {', '.join(radii)}" if radii else ""
    return ", ".join(part for part in (model, attack, eps) if part)


def group_verdicts(verdicts: Sequence[Verdict]) -> list[VerdictGroup]:
    """Group verdicts by outcome and sentence.

    Args:
        verdicts: Verdicts of a check.

    Returns:
        Groups in the order of their first verdict. A verdict with counts is a group of its own.
    """
    groups: dict[Hashable, list[Verdict]] = {}
    for number, verdict in enumerate(verdicts):
        key = (verdict.outcome, verdict.sentence, number if verdict.change else None)
        groups.setdefault(key, []).append(verdict)
    return [VerdictGroup(group) for group in groups.values()]
