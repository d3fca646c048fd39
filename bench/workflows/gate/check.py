"""Compare the snapshot of a run with a baseline; no files are read or written."""

from collections.abc import Iterator, Sequence

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import ExampleClasses, Snapshot
from bench.suite.thresholds import Thresholds
from bench.suite.unions import ThreatUnion
from bench.workflows.gate import accuracy, quality
from bench.workflows.gate.verdicts import Check


def check_against_baseline(
    before: Snapshot,
    now: Snapshot,
    limits: Thresholds,
    unions: Sequence[ThreatUnion] = (),
    classes: ExampleClasses | None = None,
    strict: bool = False,
) -> Check:
    """Compare a run with a baseline.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        limits: Thresholds and alpha.
        unions: Unions of the suite, beside that of all its threat models.
        classes: Classes of the run's examples; None if no cell is finished.
        strict: Whether a loss beyond its threshold fails the check though it is not proven.

    Returns:
        Every verdict, and notes on other differences.
    """
    accuracies = accuracy.judge_accuracies(before, now, limits, unions, classes)
    others = quality.judge_quality(before, now, limits)
    return Check(
        [*accuracies.verdicts, *others],
        list(_notes(before, now)),
        accuracies.power,
        unfinished=sum(cell.status in ("failed", "missing") for cell in now.cells),
        strict=strict,
    )


def _notes(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Describe changes that do not prevent the comparison."""
    if before.suite != now.suite:
        yield f"the suite was called {before.suite} and is {now.suite}"
    if before.seed != now.seed:
        yield f"the seed was {before.seed} and is {now.seed}"
    earlier = snapshot_matching.index_models(before)
    for label, model in snapshot_matching.index_models(now).items():
        if label in earlier and earlier[label].fingerprint != model.fingerprint:
            yield f"{label} is another model than the baseline's"
    were = snapshot_matching.index_attacks(before)
    for key, task in snapshot_matching.index_attacks(now).items():
        was, (name, attack) = were.get(key), key
        if was is not None and was.settings.get("code") != task.settings.get("code"):
            yield f"the code of {attack} changed, so a change of {name} may be the attack's"
    yield from _describe_certified(now)
    if before.machine != now.machine:
        was_on, is_on = quality.describe_machine(before), quality.describe_machine(now)
        yield f"made on another machine: {was_on} before, {is_on} now"


def _describe_certified(now: Snapshot) -> Iterator[str]:
    """Describe how many examples of the run were certified and therefore not attacked."""
    left_out: dict[tuple[str, str], list[str]] = {}
    for cell in now.cells:
        if cell.certified:
            text = f"{cell.certified} of {now.data.n} at eps {cell.eps_text}"
            left_out.setdefault((cell.model, cell.attack), []).append(text)
    for (model, attack), counts in left_out.items():
        yield f"{model}, {attack}: certified, not attacked: {', '.join(counts)}"
