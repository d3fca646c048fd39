"""Probe the models of a run with the examples, norms and attacks of its suite."""

import copy
import time
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from bench.core import streams
from bench.core.contracts.types import Threat
from bench.core.errors import SuiteError, describe
from bench.engine import process_cache
from bench.engine.device import enter_device
from bench.evaluation.audit import gradient_check, probes, symptoms
from bench.evaluation.evaluator import Evaluator
from bench.suite import plan

DEFAULT = Threat(norm="linf", eps=0.1)
"""Where a model is probed whose attacks are in neither L-inf nor L2."""
CHECKED = [kind.name for kind in (*probes.MODEL_SYMPTOMS, *probes.TRACE_SYMPTOMS)]
"""What these probes look for: answers of an earlier bench that looked for less are asked again."""
CHEAP = 0.1
"""Fraction of an attack's passes that all probes may take where they are not asked for."""
DECLINED = "its probes were declined, or would take more than a tenth of the attack's passes"


def probe_models(
    evaluator: Evaluator,
    tasks: Sequence[plan.AttackTask],
    full: bool | None = True,
) -> dict[str, dict[str, Any]]:
    """Probe every model.

    Args:
        evaluator: Models and data.
        tasks: The tasks of the plan.
        full: As in `probe_model`.

    Returns:
        For each model the findings as provenance.json stores them.
    """
    findings = {}
    for label, loaded in evaluator.models.items():
        of = identify_probes(tasks, label, loaded.fingerprint, evaluator.data.fingerprint)
        if label in evaluator.unfit:
            findings[label] = describe_unprobed(of, f"it {evaluator.unfit[label]}")
        else:
            findings[label] = probe_model(evaluator, label, tasks, of, full)
    return findings


def identify_probes(
    tasks: Sequence[plan.AttackTask], label: str, model_fingerprint: str, data_fingerprint: str
) -> list[str]:
    """List what the probes of a model depend on: the model, the data and the cells of its attacks.

    Args:
        tasks: The tasks of the plan.
        label: The model's label.
        model_fingerprint: Its fingerprint.
        data_fingerprint: Fingerprint of the data.

    Returns:
        Hashes; equal lists make probing again unnecessary.
    """
    cells = [cell.identity for task in _own_tasks(tasks, label) for cell in task.cells]
    return [model_fingerprint, data_fingerprint, *cells]


def is_current(probed: Mapping[str, Any], of: Sequence[str]) -> bool:
    """Check whether stored findings of a model are still valid.

    Args:
        probed: Findings from provenance.json.
        of: What `identify_probes` returns now.

    Returns:
        True if the model need not be probed again.
    """
    return probed.get("of") == of and probed.get("looked") == CHECKED


def describe_unprobed(of: Sequence[str], why: str) -> dict[str, Any]:
    """Build the entry of provenance.json of a model that could not be probed.

    Args:
        of: What `identify_probes` returned.
        why: The reason.

    Returns:
        The entry, without findings.
    """
    return {
        "of": [*of], "traced": [], "looked": CHECKED, "failed": why, "n": 0, "seconds": 0.0,
        "signs": [],
    }  # fmt: skip


def probe_model(
    evaluator: Evaluator,
    label: str,
    tasks: Sequence[plan.AttackTask],
    of: Sequence[str],
    full: bool | None = True,
) -> dict[str, Any]:
    """Probe one model.

    Args:
        evaluator: Models and data.
        label: The model's label.
        tasks: The tasks of the plan.
        of: What `identify_probes` returned.
        full: Run all probes; False compares a few gradients with finite differences only; None
            runs all if they are cheap compared with the attacks.

    Returns:
        The findings as provenance.json stores them.
    """
    own = _own_tasks(tasks, label)
    traced = {task.entry.label: task for task in own if probes.is_traceable(task.spec)}
    everything = _are_cheap(evaluator.data.n, own) if full is None else full
    return _probe_one(evaluator, label, own, traced, of, everything)


def _own_tasks(tasks: Sequence[plan.AttackTask], label: str) -> list[plan.AttackTask]:
    """Select the tasks that attack a model with its own gradients and are not skipped."""
    own = [task for task in tasks if task.model == label and task.source == label]
    return [task for task in own if not task.cells[0].reason]


def _are_cheap(n: int, tasks: Sequence[plan.AttackTask]) -> bool:
    """Return whether all probes take few gradients compared with those of the attacks."""
    ahead = n * sum(cell.gradients or 0.0 for task in tasks for cell in task.cells)
    traces = sum(2 * task.spec.params.steps for task in tasks if probes.is_traceable(task.spec))
    return bool(probes.count_examples(n) * (probes.GRADIENTS_PER_EXAMPLE + traces) <= CHEAP * ahead)


def _probe_one(
    evaluator: Evaluator,
    label: str,
    tasks: Sequence[plan.AttackTask],
    traced: Mapping[str, plan.AttackTask],
    of: Sequence[str],
    full: bool,
) -> dict[str, Any]:
    document = {**describe_unprobed(of, ""), "traced": list(traced)}
    if not full:
        document |= {"looked": [symptoms.WRONG_GRADIENT.name], "unlooked": DECLINED}
    if not tasks:
        return {**document, "failed": "no attack was run that sees the model"}
    if evaluator.models[label].access != "gradient":
        return {**document, "failed": "the model only answers queries, and probes follow gradients"}
    started = time.perf_counter()
    try:
        seen = evaluator.select_examples(tasks[0], *evaluator.chunks()[0])
        right = (seen.clean_pred == seen.label).nonzero()[
            : probes.count_examples(evaluator.data.n), 0
        ]
        if not len(right):
            return {**document, "failed": "no example is classified correctly"}
        probed = probes.ProbedModel(
            label=label,
            model=evaluator.models[label].model,
            id=seen.id[right],
            x=seen.x[right],
            y=seen.label[right],
            rows=evaluator.rows[label],
        )
        specs = {name: task.spec for name, task in traced.items()}
        with (
            enter_device(evaluator.device),
            streams.protect_streams(evaluator.notes.append, f"the probes of model '{label}'"),
        ):
            if full:
                observed = probes.probe_model(probed, _choose_threat(tasks), specs)
                signs = [symptoms.to_json(symptom) for symptom in observed]
            else:
                fit = evaluator.models[label]
                vague = fit.random or "batch-dependent" in fit.finding_names()
                signs = [] if vague else _check_gradients(evaluator, probed)
                if vague:
                    document["looked"] = []
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's model or attack may raise anything
        return {**document, "failed": describe(error)}
    return {
        **document,
        "n": len(right),
        "seconds": round(time.perf_counter() - started, 3),
        "signs": signs,
    }


def _check_gradients(evaluator: Evaluator, probed: probes.ProbedModel) -> list[dict[str, Any]]:
    """Compare a few gradients with finite differences, or recall what that showed before."""
    compared = tuple(probed.id[: gradient_check.MAX_IMAGES].tolist())
    data = evaluator.data.fingerprint
    key = "gradients", probed.label, data, compared, str(evaluator.device), probed.rows
    answers = evaluator.models[probed.label].hash_answers()  # of what no fingerprint sees, too
    signs: list[dict[str, Any]] | None = process_cache.recall(answers, *key)
    if signs is None:
        signs = [symptoms.to_json(symptom) for symptom in probes.check_gradients(probed)]
        process_cache.store(signs, answers, *key)
    return copy.deepcopy(signs)


def _choose_threat(tasks: Sequence[plan.AttackTask]) -> Threat:
    """The middle eps of the norm in which most of the cells are."""
    norms = [task.spec.norm for task in tasks if task.spec.norm in ("linf", "l2")]
    if not norms:
        return DEFAULT
    norm = max(norms, key=norms.count)
    eps = {eps for task in tasks if task.spec.norm == norm for eps in task.spec.eps if eps > 0}
    return Threat(norm=norm, eps=median_low(sorted(eps))) if eps else DEFAULT
