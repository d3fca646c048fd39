"""The probes of a run: the examples, the ball and the attacks of the suite that a model meets."""

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
"""Where a model is probed whose attacks are in neither L-inf nor L2."""
CHECKED = [kind.name for kind in (*probes.MODEL_SYMPTOMS, *probes.TRACE_SYMPTOMS)]
"""What these probes look for: answers of an earlier bench that looked for less are asked again."""
CHEAP = 0.1
"""Share of an attack's passes that all probes may take where they are not asked for."""
DECLINED = "its probes were declined, or would take more than a tenth of the attack's passes"


def probe_models(
    session: Evaluator,
    tasks: Sequence[plan.AttackTask],
    earlier: Mapping[str, Any],
    watch: Watch = UNWATCHED,
    full: bool | None = True,
) -> dict[str, dict[str, Any]]:
    """For each model what its probes found, as provenance.json keeps it.

    What `earlier`, the same of an earlier session, holds of the same model, data and attacks is
    taken as it is. Unless `full`, a few gradients are compared with finite differences, and nothing
    more; None leaves it to what all probes would cost.
    """
    found = {}
    for label, subject in session.subjects.items():
        own = [task for task in tasks if task.model == label and task.source == label]
        own = [task for task in own if not task.cells[0].reason]
        traced = {task.entry.label: task for task in own if probes.is_traceable(task.spec)}
        cells = [cell.identity for task in own for cell in task.cells]
        of = [subject.fingerprint, session.data.fingerprint, *cells]
        known = earlier.get(label, {})
        if label in session.unfit:
            found[label] = _empty_result(of, f"it {session.unfit[label]}")
        elif known.get("of") == of and known.get("looked") == CHECKED:
            found[label] = known
        elif why := watch.enter(Stage("probe", f"{label}, probing it", label)):
            found[label] = _empty_result(of, why)
        else:
            everything = _are_cheap(session.data.n, own) if full is None else full
            found[label] = _probe_one(session, label, own, traced, of, everything)
    return found


def _are_cheap(n: int, tasks: Sequence[plan.AttackTask]) -> bool:
    """Whether all probes take few gradients beside those that the attacks may take."""
    ahead = n * sum(cell.gradients or 0.0 for task in tasks for cell in task.cells)
    traces = sum(2 * task.spec.params.steps for task in tasks if probes.is_traceable(task.spec))
    return bool(probes.count_examples(n) * (probes.GRADIENTS_PER_EXAMPLE + traces) <= CHEAP * ahead)


def _empty_result(of: list[str], why: str) -> dict[str, Any]:
    return {
        "of": of, "traced": [], "looked": CHECKED, "failed": why, "n": 0, "seconds": 0.0,
        "signs": [],
    }  # fmt: skip


def _probe_one(
    session: Evaluator,
    label: str,
    tasks: Sequence[plan.AttackTask],
    traced: Mapping[str, plan.AttackTask],
    of: list[str],
    full: bool,
) -> dict[str, Any]:
    document = {**_empty_result(of, ""), "traced": list(traced)}
    if not full:
        document |= {"looked": [symptoms.WRONG_GRADIENT.name], "unlooked": DECLINED}
    if not tasks:
        return {**document, "failed": "no attack was run that sees the model"}
    if session.subjects[label].access != "gradient":
        return {**document, "failed": "the model only answers queries, and probes follow gradients"}
    started = time.perf_counter()
    try:
        seen = session.examples(tasks[0], *session.shards()[0])
        right = (seen.clean_pred == seen.label).nonzero()[
            : probes.count_examples(session.data.n), 0
        ]
        if not len(right):
            return {**document, "failed": "no example is classified correctly"}
        subject = probes.ProbedModel(
            label=label,
            model=session.subjects[label].model,
            id=seen.id[right],
            x=seen.x[right],
            y=seen.label[right],
            rows=session.rows[label],
        )
        curves = {name: task.spec for name, task in traced.items()}
        with streams.protect_streams(session.notes.append, f"the probes of model '{label}'"):
            if full:
                found = probes.probe_model(subject, _choose_threat(tasks), curves)
            else:
                fit = session.subjects[label]
                vague = fit.random or any("(batch-dependent" in each for each in fit.findings)
                found = [] if vague else probes.check_gradients(subject)
                if vague:
                    document["looked"] = []
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a stranger's model or attack may raise anything
        return {**document, "failed": describe(error)}
    return {
        **document,
        "n": len(right),
        "seconds": round(time.perf_counter() - started, 3),
        "signs": [symptoms.to_json(sign) for sign in found],
    }


def _choose_threat(tasks: Sequence[plan.AttackTask]) -> Threat:
    """The middle eps of the norm in which most of the cells are."""
    norms = [task.spec.norm for task in tasks if task.spec.norm in ("linf", "l2")]
    if not norms:
        return DEFAULT
    norm = max(norms, key=norms.count)
    eps = {eps for task in tasks if task.spec.norm == norm for eps in task.spec.eps if eps > 0}
    return Threat(norm=norm, eps=median_low(sorted(eps))) if eps else DEFAULT
