"""Why two attacks disagree, by experiment: ours is changed towards the reference, one thing at a
time, and the first change that closes the gap is named.

Both sides are run again on the same examples, on the model itself and at one eps. First it is
asked whether the gap is chance; then each known difference is tried alone, then what can only be
guessed; last, known differences are joined one after another, with the guesses that narrow the gap,
until it is closed, and what can be left out of that is.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.analysis import cell_names, explanations
from bench.analysis.explanations import Experiment, Explanation, count_disagreements
from bench.core.errors import ContractError, SuiteError, first_line
from bench.evaluation import metrics
from bench.evaluation.evaluator import Evaluator
from bench.execution import options as execution_options
from bench.execution import preparation
from bench.suite import plan, reader
from bench.suite.schema import Suite
from bench.workflows.explain import hypotheses
from bench.workflows.explain.experiments import ExperimentRunner, ExperimentSetup
from bench.workflows.explain.hypotheses import DOUBLE, Hypothesis, UntestedDifference

CLOSED = 0.05
"""A gap is closed if no more than this share of it is left, or one example: rounding in another
order may flip that."""
SEEDS = 3
"""Other seeds under which an attack that draws is held against itself: what remains of a gap, or
all of it, is chance if it is no larger than the largest of these differences and the exact paired
test does not tell the sides apart."""
EXAMPLES = 256
"""Examples of an explanation, unless told otherwise: a few dozen attacks are run on each."""
Listener = Callable[[str], None]


def explain_tasks(
    session: Evaluator,
    ours: plan.AttackTask,
    reference: plan.AttackTask,
    listen: Listener = lambda text: None,
) -> Explanation:
    """Why the only cells of two tasks on one model disagree; ours is changed to find out.

    `listen` hears of every experiment before it is made.
    Raises: SuiteError if nothing could be attacked or one of the two cannot be run.
    """
    inquiry = DisagreementSearch(ExperimentRunner(session, ours, reference), listen)
    closed_by, cause = inquiry.verdict()
    mine, theirs = inquiry.trial.outcomes(inquiry.trial.base)
    return Explanation(
        model=ours.model,
        ours=ours.entry.label,
        reference=reference.entry.label,
        norm=ours.entry.norm,
        eps_text=ours.cells[0].eps_text,
        attacked=len(mine),
        only_ours=tuple(map(int, mine.index[theirs & ~mine])),
        only_reference=tuple(map(int, mine.index[mine & ~theirs])),
        experiments=tuple(inquiry.made),
        closed_by=tuple(change.text for change in closed_by),
        cause=cause,
        cells=(ours.cells[0].identity, reference.cells[0].identity),
    )


# --------------------------------------------------------------------------------- the experiments


class DisagreementSearch:
    """What was tried, and what could not be."""

    def __init__(self, trial: ExperimentRunner, listen: Listener) -> None:
        self.trial, self.listen = trial, listen
        if not len(trial.chosen.id):
            raise SuiteError("there is nothing to explain: no example could be attacked")
        listen("both sides as they are")
        try:
            self.ours, self.reference = map(trial.watched, trial.base[:2])
        except _FAILURES as error:
            raise SuiteError(
                f"one of the two attacks could not be run: {first_line(error)}"
            ) from error
        self.made: list[Experiment] = []
        self.untried: list[str] = []
        self.first = self._experiment("", trial.base)
        """Both sides as they are."""

    def verdict(self) -> tuple[list[Hypothesis], str]:
        """The change, or the changes together, that close the gap, and that in a sentence."""
        if self.first.closes:
            return [], "They agree but for one example at most: there is nothing to explain."
        if self._is_chance(self.trial.base, self.first.gap, self.first.p_value):
            told = f"an attack that draws is as far from itself under one of {SEEDS} other seeds"
            return [], f"That is chance: {told}, and the exact test tells no side from the other."
        known = list(hypotheses.list_known_differences(self.trial.base, self.ours, self.reference))
        self.untried += [each.text for each in known if isinstance(each, UntestedDifference)]
        sure = [each for each in known if isinstance(each, Hypothesis)]
        guessed = list(hypotheses.list_guesses(self.trial.base, self.reference))
        closing = self._alone([*sure, DOUBLE])
        if closing:
            return closing[:1], self._named("The first change that closes the gap is", closing)
        closing = sorted(self._alone(guessed), key=self._left)
        if closing:
            told = "No known difference closes the gap; of what was guessed, what leaves least is"
            return closing[:1], self._named(told, closing)
        together = self._together(sure, [DOUBLE, *guessed])
        if together:
            names = "; ".join(change.text for change in together)
            told = "No change closes the gap alone; together these do, and none can be left out"
            return together, f"{told}: {names}."
        return [], self._nothing()

    def _alone(self, changes: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Those of the changes that close the gap alone."""
        pairs = [
            (change, self._tried(change.text, change.apply, self.trial.base)) for change in changes
        ]
        return [change for change, made in pairs if made is not None and made.closes]

    def _left(self, change: Hypothesis) -> int:
        """The gap after a change that was tried alone."""
        return next(made.gap for made in self.made if made.change == change.text)

    def _together(
        self, sure: Sequence[Hypothesis], guessed: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """As few changes as close the gap together; empty if all of them do not."""
        setup, kept, gap = self.trial.base, [], self.first.gap
        for change in (*sure, *guessed):
            made = self._tried(f"with {change.text}", change.apply, setup)
            if made is None or (change not in sure and made.gap >= gap):
                continue
            setup, gap = change.apply(setup), made.gap
            kept.append(change)
            if made.closes:
                return self._least(kept)
        return []

    def _least(self, kept: list[Hypothesis]) -> list[Hypothesis]:
        """The changes without those that close the gap by their absence as well."""
        for change in kept[:-1]:
            rest = [each for each in kept if each is not change]
            made = self._tried(f"all these without {change.text}", _compose(rest), self.trial.base)
            kept = rest if made is not None and made.closes else kept
        return kept

    def _tried(
        self, text: str, apply: Callable[[ExperimentSetup], ExperimentSetup], setup: ExperimentSetup
    ) -> Experiment | None:
        """The experiment; None if what was changed cannot be run."""
        self.listen(text)
        try:
            return self._experiment(text, apply(setup))
        except _FAILURES as error:
            self.untried.append(f"{text} ({first_line(error)})")
            return None

    def _experiment(self, text: str, setup: ExperimentSetup) -> Experiment:
        mine, theirs = self.trial.outcomes(setup)
        test = metrics.mcnemar_test(
            theirs, mine
        )  # first: robust under theirs alone, so broken by ours
        gap, most = count_disagreements(test), self._closed()
        narrower = bool(self.made) and most < gap < self.first.gap
        chance = narrower and self._is_chance(setup, gap, test.p_value)
        made = Experiment(
            change=text,
            ours_robust=int(mine.sum()),
            reference_robust=int(theirs.sum()),
            only_ours_broke=test.only_first,
            only_reference_broke=test.only_second,
            p_value=test.p_value,
            closes=gap <= most or chance,
        )
        self.made.append(made)
        return made

    def _closed(self) -> float:
        """The largest gap that counts as closed."""
        return max(1.0, CLOSED * self.first.gap) if self.made else 1.0

    def _is_chance(self, setup: ExperimentSetup, gap: int, p_value: float) -> bool:
        """Whether a side that draws is as far from itself under other seeds as the gap is wide."""
        sides = (setup.ours, setup.reference)
        side = next((each for each in sides if each.curve.attack.stochastic), None)
        if side is None or p_value <= metrics.SIGNIFICANCE_LEVEL:
            return False
        own = metrics.robust_examples(self.trial.records(side))
        for other in range(1, SEEDS + 1):
            curve = dataclasses.replace(side.curve, seed=side.curve.seed + other)
            there = metrics.robust_examples(self.trial.records(side._replace(curve=curve)))
            if count_disagreements(metrics.mcnemar_test(own, there)) >= gap:
                return True
        return False

    # ------------------------------------------------------------------------------------ in words

    def _named(self, told: str, closing: Sequence[Hypothesis]) -> str:
        first, left = closing[0], self._left(closing[0])
        chance = ", as many as other draws make" if left > self._closed() else ""
        told = f"{told} {first.text} ({left} left{chance})"
        if len(closing) > 1:
            told += f"; so does {' and '.join(change.text for change in closing[1:])}"
        return f"{told}.{self._saturated(closing)}"

    def _saturated(self, closing: Sequence[Hypothesis]) -> str:
        """That float32 is behind it, where float64 closes the gap, or opens it again after a
        change of loss has closed it; else nothing."""
        first, traits = closing[0], [change.trait for change in closing]
        mine, theirs = self.trial.outcomes(self.trial.base)
        sure = self.trial.records(self.trial.base.ours)["clean_confidence"][mine != theirs] == 1
        if not sure.any():
            return ""
        if DOUBLE.trait not in traits:
            if first.trait != "loss":
                return ""
            text = f"{first.text}, in float64"
            again = self._tried(text, _compose([first, DOUBLE]), self.trial.base)
            if again is None or again.closes:
                return ""
        return (
            f" The cause is saturation: the clean confidence of {int(sure.sum())} of the "
            f"{len(sure)} examples rounds to 1 in float32, where the cross-entropy's gradient is "
            "rounding error, and float64 undoes it."
        )

    def _nothing(self) -> str:
        best = min(self.made[1:], key=lambda made: made.gap, default=self.first)
        told = "No change closes the gap, alone or with others; "
        narrowed = f"the nearest is {best.change} ({best.gap} left)."
        told += narrowed if best.gap < self.first.gap else "none narrows it."
        return f"{told} Not tried: {'; '.join(self.untried)}." if self.untried else told


_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, ContractError)
"""What an attack that does not suit a changed model or parameter raises."""


def _compose(changes: Sequence[Hypothesis]) -> Callable[[ExperimentSetup], ExperimentSetup]:
    def apply(setup: ExperimentSetup) -> ExperimentSetup:
        for change in changes:
            setup = change.apply(setup)
        return setup

    return apply


# ---------------------------------------------------------------- a suite's cells, or a run's


def explain_cells(
    where: str,
    ours: str,
    reference: str,
    options: execution_options.RunOptions,
    listen: Listener = lambda t: None,
) -> Explanation:
    """Why two cells of a suite, or of a run's folder, disagree; a folder keeps what is found.

    The cells are called as `naming.find` knows them. As many as EXAMPLES examples are attacked,
    or `options.limit`.
    Raises: SuiteError for a suite, a folder or cells that are not there or cannot be compared.
    """
    folder = Path(where) if (Path(where) / "provenance.json").exists() else None
    checked, identities = (reader.read_suite(where), {}) if folder is None else _of_run(folder)
    planned = plan.plan_tasks(checked, plan.collect_declared_facts(checked))
    first, second = (cell_names.find_cell(name, planned) for name in (ours, reference))
    cell_names.check_comparable(first.cell, second.cell)
    labels = {first.task.model, first.task.source}
    needed = dataclasses.replace(
        checked,
        models=tuple(model for model in checked.models if model.label in labels),
        attacks=(first.task.entry, second.task.entry),
    )
    limit = options.limit or min(checked.data.limit or EXAMPLES, EXAMPLES)
    listen("loading")
    session = preparation.load_evaluator(needed, folder, dataclasses.replace(options, limit=limit))
    mine, theirs = (_task(session, each, identities) for each in (first, second))
    made = explain_tasks(session, mine, theirs, listen)
    if folder is not None:
        explanations.write_explanation(folder, made)
    return made


def _of_run(folder: Path) -> tuple[Suite, dict[tuple[str, str, float], str]]:
    """A run's suite, and its cells' identities by model, attack and eps."""
    path = folder / "provenance.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        text = document["suite"]["text"]
        cells = document["cells"]
        known = {(cell["model"], cell["attack"], cell["eps"]): cell["identity"] for cell in cells}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SuiteError(f"{path}: could not be read ({error!r}); run the suite again") from error
    return reader.parse_suite(text, str(path), Path()), known


def _task(
    session: Evaluator, found: cell_names.PlannedCell, identities: dict[tuple[str, str, float], str]
) -> plan.AttackTask:
    """The task of this cell alone, planned with what is known now that its model is loaded."""
    model, entry, cell = found.task.model, found.task.entry, found.cell
    if why := session.why_unfit(found.task):
        raise SuiteError(f"cell '{cell.model}/{cell.attack}': {why}")
    source = session.facts(entry.source) if entry.source else None
    task = plan.plan_task(model, entry, session.facts(model), session.seed, "independent", source)
    (place,) = (k for k, each in enumerate(task.cells) if each.eps == cell.eps)
    planned = task.cells[place]
    if planned.reason:
        told = f"cell '{cell.model}/{cell.attack}' is skipped: {planned.reason}"
        raise SuiteError(told)
    identity = identities.get((cell.model, cell.attack, cell.eps), "")
    curve = dataclasses.replace(task.curve, eps=(cell.eps,))
    return task._replace(curve=curve, cells=(dataclasses.replace(planned, identity=identity),))
