"""Define the verdicts of a check, and the sentences that every output shares.

There is a verdict on every cell, the worst case over the attacks of a threat model at each eps, all
cells of a model together, each model's clean accuracy, each attack's validity, each model's
throughput and audit, and on unions of threat models and worst classes where a threshold asks for
it. Accuracies are compared on the same examples. A loss fails the check if it exceeds its threshold
*and* the exact one-sided paired test (`metrics.one_sided_sign_test`) is significant after Holm's
correction over all accuracies of the check. So if a run differs from the baseline in its seeds
alone, the check fails with probability at most alpha: each example that changed is then as likely a
loss as a gain. All cells together are tested by the sign of each example's change, the cells that
it lost less those that it gained, which is exact however the cells depend on each other.

    finding                                                      outcome        exit code
    ----------------------------------------------------------   ------------   ---------
    a loss beyond threshold and significant; more violations,    regressed      1
      new symptoms or a lower throughput than allowed
    a cell that failed now, whether or not it failed before      failed         1
    a loss beyond threshold that is not significant              lost, not      0; 1 if the
                                                                 proven         check is strict
    a cell of the baseline with other data or settings, or one   not compared   3, unless
      that is missing from the suite, unfinished or skipped; a                  another is 1
      symptom of the baseline that was not checked
    a cell or model without numbers in the baseline              new            0
    a gain beyond threshold and significant                      improved       0
    any other change                                             passed         0
    a throughput over too little time, on another machine or     not judged     0
      over other cells; a cell skipped both times; a union of
      a model that is attacked in one norm; classes that all
      have too few images; a model of which nothing could be
      audited

A check that compared no accuracy ends with 3. Changes of the seed, of an attack's code, of the
suite's name, of the machine and of a model's weights are noted, and the comparison is made.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

Outcome: TypeAlias = Literal[
    "regressed", "failed", "lost, not proven", "not compared", "new", "improved", "passed",
    "not judged",
]  # fmt: skip


class AccuracyChange(NamedTuple):
    """An accuracy before and after, on the same examples."""

    before: int
    """Outcomes that are correct, of n; as the next."""
    after: int
    n: int
    """Outcomes compared: one per example, or of all cells together one per example and cell."""
    lost: tuple[int, ...]
    """Ids of the examples that are correct in fewer outcomes than before; the next, in more."""
    gained: tuple[int, ...]
    p_lost: float
    """Corrected over all accuracies of the check; as the next."""
    p_gained: float


class Verdict(NamedTuple):
    """The outcome of one comparison of a check."""

    gate: str
    """"clean accuracy", "robust accuracy", "union of threat models", "worst class", "robust
    accuracy within queries", "validity", "throughput" or "audit"."""
    model: str
    attack: str
    eps: str
    outcome: Outcome
    sentence: str
    change: AccuracyChange | None = None

    @property
    def where(self) -> str:
        """Model, attack and eps, as far as the verdict has them."""
        eps = f"eps {self.eps}" if self.eps else ""
        return ", ".join(part for part in (self.model, self.attack, eps) if part)


class Check(NamedTuple):
    """All verdicts of a check, with notes on other changes."""

    verdicts: list[Verdict]
    notes: list[str]
    power: str
    """The smallest loss that can fail the check, in a sentence."""
    unfinished: int = 0
    """Cells of the run that failed or are missing."""
    strict: bool = False
    """Whether a loss that is not proven fails the check."""

    def select(self, *outcomes: Outcome) -> list[Verdict]:
        """Select verdicts by outcome.

        Args:
            outcomes: Outcomes to select.

        Returns:
            Verdicts in their order.
        """
        return [verdict for verdict in self.verdicts if verdict.outcome in outcomes]

    @property
    def compared(self) -> int:
        """Number of accuracies that were compared."""
        return sum(verdict.change is not None for verdict in self.verdicts)

    @property
    def failing_outcomes(self) -> tuple[Outcome, ...]:
        """Outcomes with which the check fails."""
        always: tuple[Outcome, ...] = ("regressed", "failed")
        return (*always, "lost, not proven") if self.strict else always

    @property
    def exit_code(self) -> int:
        """Exit code of `bench check`: 0, 1 or 3."""
        if self.select(*self.failing_outcomes):
            return 1
        return 3 if self.select("not compared") or not self.compared else 0

    @property
    def can_be_accepted(self) -> bool:
        """Whether the run differs from the baseline and can replace it.

        A run with failed or missing cells cannot, and nobody accepts one that was not compared.
        """
        differs = self.exit_code or self.select("lost, not proven", "improved")
        return bool(differs and self.compared and not self.unfinished)


MAX_SHOWN_IDS = 20
"""Ids of flipped examples in one line for people."""


def list_flipped_examples(verdict: Verdict, most: int | None = MAX_SHOWN_IDS) -> list[str]:
    """List the examples whose outcome changed.

    Args:
        verdict: Verdict on an accuracy; others have no such examples.
        most: Ids in a line at most; None: all.

    Returns:
        A line of lost and a line of gained examples, if there are any.
    """
    change = verdict.change
    if change is None:
        return []
    sides = (("lost", change.lost), ("gained", change.gained))
    return [f"{word}: {_ids(ids, most)}" for word, ids in sides if ids]


def select_flipped(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Select the verdicts whose flipped examples are worth a list.

    Args:
        verdicts: Verdicts of a check.

    Returns:
        Those with flipped examples, without any that has the same ones as an earlier verdict: a
        worst case is often that of its strongest attack.
    """
    flipped: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Verdict] = {}
    for verdict in verdicts:
        if (change := verdict.change) and (change.lost or change.gained):
            flipped.setdefault((verdict.model, change.lost, change.gained), verdict)
    return [*flipped.values()]


def _ids(ids: tuple[int, ...], most: int | None) -> str:
    shown = ids if most is None else ids[:most]
    more = len(ids) - len(shown)
    return " ".join(map(str, shown)) + (f" and {more} more" if more else "")


def describe_p_value(p_value: float) -> str:
    """Describe a corrected p value.

    Args:
        p_value: Of a test, corrected for all comparisons of the check.

    Returns:
        A phrase.

    >>> describe_p_value(0.0123), describe_p_value(1e-9)
    ('p = 0.012, corrected', 'p < 0.0001, corrected')
    """
    return "p < 0.0001, corrected" if p_value < 1e-4 else f"p = {p_value:.2g}, corrected"


def summarize_check(check: Check) -> str:
    """Summarize a check in one sentence.

    Args:
        check: The finished check.

    Returns:
        Result and counts, such as "passed: 5 accuracies compared".
    """
    red, blind, better, unproven = (
        len(check.select(*outcomes))
        for outcomes in (
            check.failing_outcomes, ("not compared",), ("improved",), ("lost, not proven",),
        )
    )  # fmt: skip
    parts = ["nothing compared"]
    if check.compared:
        noun = "accuracy" if check.compared == 1 else "accuracies"
        parts = [f"{check.compared} {noun} compared"]
    if red:
        parts.append(f"{red} of {len(check.verdicts)} verdicts red")
    if unproven:
        parts.append(f"{unproven} lost more than allowed, not proven")
    if blind:
        parts.append(f"{blind} not compared")
    if better:
        parts.append(f"{better} improved")
    return f"{_choose_headline(check)}: {', '.join(parts)}"


def _choose_headline(check: Check) -> str:
    """Name the worst outcome."""
    if check.select("regressed"):
        return "REGRESSED"
    if check.select("failed"):
        return "FAILED"
    if check.exit_code == 3:
        return "COULD NOT COMPARE"
    return "LOST, NOT PROVEN" if check.select("lost, not proven") else "passed"


def format_accept_command(run: Path, baseline: Path) -> str:
    """Return the command that makes a run the baseline.

    Args:
        run: Folder of the run.
        baseline: File of the baseline.

    Returns:
        A command line.
    """
    return shlex.join(["bench", "baseline", str(run), "-o", str(baseline)])
