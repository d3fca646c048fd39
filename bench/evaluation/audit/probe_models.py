"""Probe every model of a run once, with the suite's examples, ball and attacks."""

import time
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from bench.core import streams
from bench.core.contracts.types import Threat
from bench.core.errors import SuiteError, describe
from bench.evaluation.audit import probes, symptoms
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.stages import UNWATCHED, Stage, Watch
from bench.suite import plan

DEFAULT = Threat(norm="linf", eps=0.1)
"""Threat model of the probes where the attacks are in neither L-inf nor L2."""
CHECKED = [kind.name for kind in (*probes.MODEL_SYMPTOMS, *probes.TRACE_SYMPTOMS)]
"""What these probes check; results of an earlier bench that checked less are computed again."""
CHEAP = 0.1
"""Share of an attack's passes that all probes may take where they are not requested."""
DECLINED = "its probes were declined, or would take more than a tenth of the attack's passes"


def probe_models(
    evaluator: Evaluator,
    tasks: Sequence[plan.Task],
    earlier: Mapping[str, Any],
    watch: Watch = UNWATCHED,
    full: bool | None = True,
) -> dict[str, dict[str, Any]]:
    """Probe the models of a run.

    Args:
        evaluator: Models and data.
        tasks: The planned tasks, whose attacks are traced.
        earlier: Results of an earlier evaluator; those of the same model, data and attacks are
            reused.
        watch: Is notified before a model is probed.
        full: Whether to run all probes, or only compare a few gradients with finite differences;
            None decides by what all probes would cost.

    Returns:
        Model -> what its probes found, in the form of provenance.json.
    """
    found = {}
    for label, subject in evaluator.models.items():
        own = [task for task in tasks if task.model == label and task.source == label]
        own = [task for task in own if not task.cells[0].reason]
        traced = {task.entry.label: task for task in own if probes.is_traceable(task.curve)}
        cells = [cell.identity for task in own for cell in task.cells]
        of = [subject.fingerprint, evaluator.data.fingerprint, *cells]
        known = earlier.get(label, {})
        if label in evaluator.unfit:
            found[label] = _empty_result(of, f"it {evaluator.unfit[label]}")
        elif known.get("of") == of and known.get("looked") == CHECKED:
            found[label] = known
        elif why := watch.enter(Stage("probe", f"{label}, probing it", label)):
            found[label] = _empty_result(of, why)
        else:
            everything = _are_cheap(evaluator.data.n, own) if full is None else full
            found[label] = _probe_one(evaluator, label, own, traced, of, everything)
    return found


def _are_cheap(n: int, tasks: Sequence[plan.Task]) -> bool:
    """Check whether all probes take few gradients compared with what the attacks may take."""
    ahead = n * sum(cell.gradients or 0.0 for task in tasks for cell in task.cells)
    traces = sum(2 * task.curve.params.steps for task in tasks if probes.is_traceable(task.curve))
    return bool(probes.count_examples(n) * (probes.GRADIENTS_PER_EXAMPLE + traces) <= CHEAP * ahead)


def _empty_result(of: list[str], why: str) -> dict[str, Any]:
    return {
        "of": of, "traced": [], "looked": CHECKED, "failed": why, "n": 0, "seconds": 0.0,
        "signs": [],
    }  # fmt: skip


def _probe_one(
    evaluator: Evaluator,
    label: str,
    tasks: Sequence[plan.Task],
    traced: Mapping[str, plan.Task],
    of: list[str],
    full: bool,
) -> dict[str, Any]:
    document = {**_empty_result(of, ""), "traced": list(traced)}
    if not full:
        document |= {"looked": [symptoms.WRONG_GRADIENT.name], "unlooked": DECLINED}
    if not tasks:
        return {**document, "failed": "no attack was run that sees the model"}
    if evaluator.models[label].access != "gradient":
        return {**document, "failed": "the model only answers queries, and probes follow gradients"}
    started = time.perf_counter()
    try:
        examples = evaluator.select_examples(tasks[0], *evaluator.chunks()[0])
        right = (examples.clean_pred == examples.label).nonzero()[
            : probes.count_examples(evaluator.data.n), 0
        ]
        if not len(right):
            return {**document, "failed": "no example is classified correctly"}
        subject = probes.ProbedModel(
            label=label,
            model=evaluator.models[label].model,
            id=examples.id[right],
            x=examples.x[right],
            y=examples.label[right],
            rows=evaluator.rows[label],
        )
        curves = {name: task.curve for name, task in traced.items()}
        with streams.protect_streams(evaluator.notes.append, f"the probes of model '{label}'"):
            if full:
                found = probes.probe_model(subject, _choose_threat(tasks), curves)
            else:
                loaded = evaluator.models[label]
                batch_dependent = any("(batch-dependent" in each for each in loaded.findings)
                noisy = loaded.random or batch_dependent
                found = [] if noisy else probes.check_gradients(subject)
                if noisy:
                    document["looked"] = []
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of the user's model or attack
        return {**document, "failed": describe(error)}
    return {
        **document,
        "n": len(right),
        "seconds": round(time.perf_counter() - started, 3),
        "signs": [symptoms.to_json(symptom) for symptom in found],
    }


def _choose_threat(tasks: Sequence[plan.Task]) -> Threat:
    """Choose the median eps of the norm in which most of the cells are."""
    norms = [task.curve.norm for task in tasks if task.curve.norm in ("linf", "l2")]
    if not norms:
        return DEFAULT
    norm = max(norms, key=norms.count)
    eps = {eps for task in tasks if task.curve.norm == norm for eps in task.curve.eps if eps > 0}
    return Threat(norm=norm, eps=median_low(sorted(eps))) if eps else DEFAULT
