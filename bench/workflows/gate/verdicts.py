"""What a check finds: a verdict on every cell, and on each model's clean accuracy, each attack's
validity, each model's throughput and audit.

Accuracies are compared on the same examples. A loss turns a check red where it is larger than its
threshold *and* the exact one-sided paired test (metrics.loss) finds it beyond chance, after Holm's
correction for all accuracies of the check together. So a check whose models and attacks differ from
the baseline's in nothing but their seeds is red with a chance of at most alpha: then each example
that changed is as likely a loss as a gain.

    what is found                                                outcome        exit code
    ----------------------------------------------------------   ------------   ---------
    a loss beyond threshold and chance; more violations, new      regressed      1
      signs or a lower throughput than allowed
    a cell that failed now, whatever it did before               failed         1
    a cell of the baseline whose data set or settings changed,   not compared   3, unless
      that the suite no longer has, is not finished or skipped                  something is 1
    a cell or model that the baseline has no numbers of          new            0
    a gain beyond threshold and chance                           improved       0
    any other change                                             passed         0
    a throughput too short to time, of another machine or of     not judged     0
      other cells; a cell skipped both times

A check that compared no accuracy at all ends with 3. Changes of the seed, of an attack's code, of
the suite's name, of the machine and of a model's weights are noted and compared all the same.
"""

from typing import Literal, NamedTuple, TypeAlias

Outcome: TypeAlias = Literal[
    "regressed", "failed", "not compared", "new", "improved", "passed", "not judged"
]
RED: tuple[Outcome, ...] = ("regressed", "failed")


class Change(NamedTuple):
    """An accuracy before and after, on the same n examples."""

    before: int
    after: int
    n: int
    lost: tuple[int, ...]
    """Ids of the examples."""
    gained: tuple[int, ...]
    p_lost: float
    """Corrected for all accuracies of the check, and so the next."""
    p_gained: float


class Verdict(NamedTuple):
    """What is found of one thing that a check watches."""

    gate: str
    """"clean accuracy", "robust accuracy", "validity", "throughput" or "audit"."""
    model: str
    attack: str
    eps: str
    outcome: Outcome
    sentence: str
    change: Change | None = None

    @property
    def where(self) -> str:
        """The model, attack and eps in words."""
        eps = f"eps {self.eps}" if self.eps else ""
        return ", ".join(part for part in (self.model, self.attack, eps) if part)


class Check(NamedTuple):
    """All verdicts of a check, and what a reader must know of it."""

    verdicts: list[Verdict]
    notes: list[str]
    power: str
    """The smallest loss that could have been seen."""

    def among(self, *outcomes: Outcome) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome in outcomes]

    @property
    def compared(self) -> int:
        """Accuracies that were compared."""
        return sum(verdict.change is not None for verdict in self.verdicts)

    @property
    def exit_code(self) -> int:
        if self.among(*RED):
            return 1
        return 3 if self.among("not compared") or not self.compared else 0
