"""Find the change that closes the gap between two attacks, by experiment.

Both sides are run on the same examples, on the model itself and at one eps. If the gap is not
chance, each known difference is tested alone, then each guess. If none closes the gap, known
differences and the guesses that narrow it are combined until it is closed, and changes that are not
needed are removed.
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
from bench.execution import preparation
from bench.execution.loaded_suite import explain_unfit
from bench.execution.options import RunOptions
from bench.suite import plan, reader
from bench.suite.identity import find_source_facts
from bench.suite.schema import Suite
from bench.workflows.explain import hypotheses
from bench.workflows.explain.experiments import ExperimentRunner, ExperimentSetup
from bench.workflows.explain.hypotheses import DOUBLE, Hypothesis, UntestedDifference

CLOSED = 0.05
"""A gap is closed if at most this fraction of it is left, or one example, which rounding may
flip."""
SEEDS = 3
"""Other seeds with which a stochastic attack is compared with itself. A gap is chance if it is no
larger than the largest of these differences and the exact paired test is not significant."""
EXAMPLES = 256
"""Default number of examples: a few dozen attacks are run on each."""
Listener = Callable[[str], None]


def explain_tasks(
    evaluator: Evaluator,
    ours: plan.AttackTask,
    reference: plan.AttackTask,
    on_experiment: Listener = lambda text: None,
) -> Explanation:
    """Explain why two tasks of one cell each, on the same model, disagree.

    Args:
        evaluator: Evaluator with the loaded model.
        ours: Task to be changed.
        reference: Task to compare with.
        on_experiment: Called with a description before each experiment.

    Returns:
        The experiments and the cause.

    Raises:
        SuiteError: No example could be attacked, or one of the attacks cannot be run.
    """
    search = DisagreementSearch(ExperimentRunner(evaluator, ours, reference), on_experiment)
    closed_by, cause = search.search()
    mine, theirs = search.runner.outcomes(search.runner.base)
    return Explanation(
        model=ours.model,
        ours=ours.entry.label,
        reference=reference.entry.label,
        norm=ours.entry.norm,
        eps_text=ours.cells[0].eps_text,
        attacked=len(mine),
        only_ours=tuple(map(int, mine.index[theirs & ~mine])),
        only_reference=tuple(map(int, mine.index[mine & ~theirs])),
        experiments=tuple(search.experiments),
        closed_by=tuple(change.text for change in closed_by),
        cause=cause,
        cells=(ours.cells[0].identity, reference.cells[0].identity),
    )


# --------------------------------------------------------------------------------- the experiments


class DisagreementSearch:
    """The experiments of one explanation, and the changes that could not be tested."""

    def __init__(self, runner: ExperimentRunner, on_experiment: Listener) -> None:
        self.runner, self.on_experiment = runner, on_experiment
        if not len(runner.chosen.id):
            raise SuiteError("there is nothing to explain: no example could be attacked")
        on_experiment("both sides as they are")
        try:
            self.ours, self.reference = map(runner.observe, runner.base[:2])
        except _FAILURES as error:
            raise SuiteError(
                f"one of the two attacks could not be run: {first_line(error)}"
            ) from error
        self.experiments: list[Experiment] = []
        self.untried: list[str] = []
        self.first = self._experiment("", runner.base)
        """Both sides unchanged."""

    def search(self) -> tuple[list[Hypothesis], str]:
        """Search for the changes that close the gap.

        Returns:
            A change, or the fewest changes together, that close it, if any; and the cause in a
            sentence.
        """
        if self.first.closes:
            return [], "They agree but for one example at most: there is nothing to explain."
        if self._is_chance(self.runner.base, self.first.gap, self.first.p_value):
            return [], (
                "That is chance: a stochastic attack differs from itself by as much under one of "
                f"{SEEDS} other seeds, and the exact test is not significant."
            )
        known = list(hypotheses.list_known_differences(self.runner.base, self.ours, self.reference))
        self.untried += [each.text for each in known if isinstance(each, UntestedDifference)]
        sure = [each for each in known if isinstance(each, Hypothesis)]
        guessed = list(hypotheses.list_guesses(self.runner.base, self.reference))
        closing = self._test_alone([*sure, DOUBLE])
        if closing:
            return closing[:1], self._name_cause("The first change that closes the gap is", closing)
        closing = sorted(self._test_alone(guessed), key=self._gap_after)
        if closing:
            lead = (
                "No known difference closes the gap; of the guesses, the one that leaves least is"
            )
            return closing[:1], self._name_cause(lead, closing)
        together = self._combine(sure, [DOUBLE, *guessed])
        if together:
            names = "; ".join(change.text for change in together)
            return together, (
                "No change closes the gap alone; together these do, and none can be left out: "
                f"{names}."
            )
        return [], self._describe_failure()

    def _test_alone(self, changes: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Test each change alone; return those that close the gap."""
        pairs = [
            (change, self._test(change.text, change.apply, self.runner.base)) for change in changes
        ]
        return [change for change, result in pairs if result is not None and result.closes]

    def _gap_after(self, change: Hypothesis) -> int:
        """Return the gap after a change that was tested alone."""
        return next(result.gap for result in self.experiments if result.change == change.text)

    def _combine(
        self, sure: Sequence[Hypothesis], guessed: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """Combine changes until the gap is closed; empty if all together do not close it."""
        setup, chosen, gap = self.runner.base, [], self.first.gap
        for change in (*sure, *guessed):
            result = self._test(f"with {change.text}", change.apply, setup)
            if result is None or (change not in sure and result.gap >= gap):
                continue
            setup, gap = change.apply(setup), result.gap
            chosen.append(change)
            if result.closes:
                return self._minimize(chosen)
        return []

    def _minimize(self, chosen: list[Hypothesis]) -> list[Hypothesis]:
        """Remove the changes without which the gap is closed as well."""
        for change in chosen[:-1]:
            rest = [each for each in chosen if each is not change]
            result = self._test(
                f"all these without {change.text}", _compose(rest), self.runner.base
            )
            chosen = rest if result is not None and result.closes else chosen
        return chosen

    def _test(
        self, text: str, apply: Callable[[ExperimentSetup], ExperimentSetup], setup: ExperimentSetup
    ) -> Experiment | None:
        """Run an experiment; return None if the changed side cannot be run."""
        self.on_experiment(text)
        try:
            return self._experiment(text, apply(setup))
        except _FAILURES as error:
            self.untried.append(f"{text} ({first_line(error)})")
            return None

    def _experiment(self, text: str, setup: ExperimentSetup) -> Experiment:
        mine, theirs = self.runner.outcomes(setup)
        test = metrics.mcnemar_test(
            theirs, mine
        )  # first: robust under theirs alone, so broken by ours
        gap, most = count_disagreements(test), self._closed_gap()
        narrower = bool(self.experiments) and most < gap < self.first.gap
        chance = narrower and self._is_chance(setup, gap, test.p_value)
        result = Experiment(
            change=text,
            ours_robust=int(mine.sum()),
            reference_robust=int(theirs.sum()),
            only_ours_broke=test.only_first,
            only_reference_broke=test.only_second,
            p_value=test.p_value,
            closes=gap <= most or chance,
        )
        self.experiments.append(result)
        return result

    def _closed_gap(self) -> float:
        """Return the largest gap that counts as closed."""
        return max(1.0, CLOSED * self.first.gap) if self.experiments else 1.0

    def _is_chance(self, setup: ExperimentSetup, gap: int, p_value: float) -> bool:
        """Return whether a stochastic side differs from itself under another seed by as much."""
        sides = (setup.ours, setup.reference)
        side = next((each for each in sides if each.spec.attack.stochastic), None)
        if side is None or p_value <= metrics.SIGNIFICANCE_LEVEL:
            return False
        own = metrics.robust_examples(self.runner.records(side))
        for other in range(1, SEEDS + 1):
            spec = dataclasses.replace(side.spec, seed=side.spec.seed + other)
            there = metrics.robust_examples(self.runner.records(side._replace(spec=spec)))
            if count_disagreements(metrics.mcnemar_test(own, there)) >= gap:
                return True
        return False

    # ------------------------------------------------------------------------------------ wording

    def _name_cause(self, lead: str, closing: Sequence[Hypothesis]) -> str:
        first, left = closing[0], self._gap_after(closing[0])
        chance = ", as many as under another seed" if left > self._closed_gap() else ""
        text = f"{lead} {first.text} ({left} left{chance})"
        if len(closing) > 1:
            text += f"; so does {' and '.join(change.text for change in closing[1:])}"
        return f"{text}.{self._describe_saturation(closing)}"

    def _describe_saturation(self, closing: Sequence[Hypothesis]) -> str:
        """Describe saturation, if float64 closes the gap or reopens it after a change of loss."""
        first, traits = closing[0], [change.trait for change in closing]
        mine, theirs = self.runner.outcomes(self.runner.base)
        sure = self.runner.records(self.runner.base.ours)["clean_confidence"][mine != theirs] == 1
        if not sure.any():
            return ""
        if DOUBLE.trait not in traits:
            if first.trait != "loss":
                return ""
            text = f"{first.text}, in float64"
            again = self._test(text, _compose([first, DOUBLE]), self.runner.base)
            if again is None or again.closes:
                return ""
        return (
            f" The cause is saturation: the clean confidence of {int(sure.sum())} of the "
            f"{len(sure)} examples rounds to 1 in float32, where the cross-entropy's gradient is "
            "rounding error, and float64 undoes it."
        )

    def _describe_failure(self) -> str:
        best = min(self.experiments[1:], key=lambda result: result.gap, default=self.first)
        text = "No change closes the gap, alone or with others; "
        narrowed = f"the nearest is {best.change} ({best.gap} left)."
        text += narrowed if best.gap < self.first.gap else "none narrows it."
        return f"{text} Not tried: {'; '.join(self.untried)}." if self.untried else text


_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, ContractError)
"""Errors of an attack that does not suit a changed model or parameter."""


def _compose(changes: Sequence[Hypothesis]) -> Callable[[ExperimentSetup], ExperimentSetup]:
    def apply(setup: ExperimentSetup) -> ExperimentSetup:
        for change in changes:
            setup = change.apply(setup)
        return setup

    return apply


# ---------------------------------------------------------------- cells of a suite or a run


def explain_cells(
    where: str,
    ours: str,
    reference: str,
    options: RunOptions,
    on_experiment: Listener = lambda text: None,
) -> Explanation:
    """Explain why two cells of a suite disagree; a run's folder stores the explanation.

    Args:
        where: Name or path of a suite, or folder of a run.
        ours: Name of the cell to be changed, MODEL/ATTACK/EPS.
        reference: Name of the cell to compare with.
        options: How to run; by default at most EXAMPLES examples are attacked.
        on_experiment: Called with a description before each experiment.

    Returns:
        The explanation.

    Raises:
        SuiteError: Suite, folder or cells are unknown, or cannot be compared.
    """
    folder = Path(where) if (Path(where) / "provenance.json").exists() else None
    checked, identities = (reader.read_suite(where), {}) if folder is None else _of_run(folder)
    planned = plan.plan_tasks(checked, plan.collect_declared_facts(checked))
    first, second = (cell_names.find_cell(name, planned) for name in (ours, reference))
    cell_names.check_comparable(first.cell, second.cell)
    labels = {*first.task.models}
    needed = dataclasses.replace(
        checked,
        models=tuple(model for model in checked.models if model.label in labels),
        attacks=(first.task.entry, second.task.entry),
    )
    limit = options.limit or min(checked.data.limit or EXAMPLES, EXAMPLES)
    on_experiment("loading")
    evaluator = preparation.load_evaluator(
        needed, folder, dataclasses.replace(options, limit=limit)
    )
    mine, theirs = (_task(evaluator, each, identities) for each in (first, second))
    explanation = explain_tasks(evaluator, mine, theirs, on_experiment)
    if folder is not None:
        explanations.write_explanation(folder, explanation)
    return explanation


def _of_run(folder: Path) -> tuple[Suite, dict[tuple[str, str, float], str]]:
    """Read a run's suite, and its cells' identities by model, attack and eps."""
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
    evaluator: Evaluator,
    found: cell_names.PlannedCell,
    identities: dict[tuple[str, str, float], str],
) -> plan.AttackTask:
    """Plan the task of one cell, with the facts of the loaded model."""
    model, entry, cell = found.task.model, found.task.entry, found.cell
    if why := explain_unfit(found.task, evaluator.unfit):
        raise SuiteError(f"cell '{cell.model}/{cell.attack}': {why}")
    facts = {label: evaluator.model_facts(label) for label in evaluator.models}
    source = find_source_facts(entry, facts, facts[model])
    task = plan.plan_task(
        model, entry, evaluator.model_facts(model), evaluator.seed, "independent", source
    )
    (place,) = (k for k, each in enumerate(task.cells) if each.eps == cell.eps)
    planned = task.cells[place]
    if planned.reason:
        raise SuiteError(f"cell '{cell.model}/{cell.attack}' is skipped: {planned.reason}")
    identity = identities.get((cell.model, cell.attack, cell.eps), "")
    curve = dataclasses.replace(task.spec, eps=(cell.eps,))
    return task._replace(spec=curve, cells=(dataclasses.replace(planned, identity=identity),))
