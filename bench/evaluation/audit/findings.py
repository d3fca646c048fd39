"""Audit a run: symptoms of failed attacks, and symptoms that were not checked.

What a model showed when it was probed (`bench.evaluation.audit.probes`) is read from
provenance.json; everything else is found in the records (`bench.evaluation.audit.checks`). Neither
needs the model.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.core.contracts.types import BALLS
from bench.core.errors import RecordError
from bench.evaluation import metrics
from bench.evaluation.audit import checks, probes, symptoms
from bench.evaluation.audit.evidence import AttackedCell
from bench.evaluation.audit.symptoms import ObservedSymptom
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

RANDOM_MODEL = "the model answers at random, so a success may go whenever it is asked again"
NOT_PROBED = "the model was probed before bench looked for it"
NOT_TRACED = "no iterated gradient attack of bench's own, untargeted, was run"


class UncheckedSymptom(NamedTuple):
    """A symptom that was not checked on a model, and why."""

    model: str
    name: str
    why: str


class UnauditedAttack(NamedTuple):
    """An attack on a model of which no cell is finished, so that nothing of it was audited."""

    model: str
    attack: str


class Audit(NamedTuple):
    """The symptoms found, model by model, and what was not checked."""

    models: list[str]
    symptoms: list[ObservedSymptom]
    unchecked: list[UncheckedSymptom]
    unaudited: Sequence[UnauditedAttack] = ()


def audit_run(
    plan: Sequence[Cell],
    table: pd.DataFrame,
    stored: StoredRecords,
    probed: Mapping[str, Any],
    random: Collection[str] = (),
) -> Audit:
    """Look for symptoms in the records of a run and in the answers to its probes.

    Args:
        plan: All cells of the run.
        table: The table of `tables.cell_table`.
        stored: The per-example records.
        probed: Model -> what its probes found, from provenance.json.
        random: Labels of models that answer at random.

    Returns:
        Symptoms and unchecked symptoms of every model.

    Raises:
        RecordError: `probed` is damaged.
    """
    # The checks compare attacks within balls: a larger one contains a smaller one.
    compared = (table["status"] == "ok") & (table["eps"] > 0) & table["norm"].isin(BALLS)
    finished = set(table["cell"][compared])
    runs = list(_attacked_cells([cell for cell in plan if cell.identity in finished], stored))
    models = list(dict.fromkeys(cell.model for cell in plan))
    all_symptoms: list[ObservedSymptom] = []
    unchecked: list[UncheckedSymptom] = []
    for model in models:
        own = [run for run in runs if run.cell.model == model]
        shown, missing = _read_probes(model, probed.get(model))
        all_symptoms += [symptom for symptom in shown if not _is_remedied(symptom, own)]
        names = {symptom.name for symptom in shown}
        is_random = model in random or symptoms.UNSTABLE_PREDICTIONS.name in names
        all_symptoms += _find_nonfinite(table[table["model"] == model])
        probe_symptoms = (*probes.MODEL_SYMPTOMS, *probes.TRACE_SYMPTOMS)
        checked = {kind.name for kind in probe_symptoms} - set(missing)
        for name, (check, why) in checks.CHECKS.items():
            if name == symptoms.SILENT_SUCCESS.name and is_random:
                missing[name] = RANDOM_MODEL
                continue
            observed = check(own, runs)
            all_symptoms += observed or []
            if observed is not None:
                missing.pop(name, None)
            elif name not in checked:
                missing[name] = why
        unchecked += [UncheckedSymptom(model, name, why) for name, why in missing.items()]
    return Audit(models, all_symptoms, unchecked, find_unaudited(table))


def find_unaudited(table: pd.DataFrame) -> list[UnauditedAttack]:
    """Find the attacks on a model of which no cell above eps 0 is finished and one should be.

    Args:
        table: The table of `tables.cell_table`.

    Returns:
        The attacks, in the order of the table. An attack that was skipped is none of them.
    """
    above = table[(table["eps"] > 0) & (table["status"] != "skipped")]
    return [
        UnauditedAttack(str(model), str(attack))
        for (model, attack), rows in above.groupby(["model", "attack"], sort=False)
        if not (rows["status"] == "ok").any()
    ]


def _find_nonfinite(table: pd.DataFrame) -> Iterator[ObservedSymptom]:
    """Find cells of one model whose attack met gradients with non-finite entries.

    Which examples these were is not recorded.
    """
    if "nonfinite_gradients" not in table.columns:
        return
    for row in table[table["nonfinite_gradients"].fillna(0) > 0].to_dict("records"):
        count, n = int(row["nonfinite_examples"]), int(row["attacked"])
        yield ObservedSymptom(
            name=symptoms.NO_GRADIENT.name,
            model=str(row["model"]),
            attack=str(row["attack"]),
            norm=str(row["norm"]),
            eps=float(row["eps"]),
            count=count,
            n=n,
            evidence=f"The gradient was not finite in some entries for {count} of {n} attacked "
            f"examples, in {int(row['nonfinite_gradients'])} gradients; these counted as 0 there.",
            examples=(),
            threshold="any",
        )


def _attacked_cells(plan: Sequence[Cell], stored: StoredRecords) -> Iterator[AttackedCell]:
    places = stored.row_positions()
    for cell in plan:
        records = stored.frame.iloc[places[cell.identity]].set_index("example")
        # Certified examples count as not broken, so that attacks are compared on the same examples.
        judged = records[records["attacked"] | records["certified"]]
        if judged["attacked"].any():
            yield AttackedCell(cell, metrics.fooled_examples(judged), judged)


def _read_probes(model: str, probed: Any) -> tuple[list[ObservedSymptom], dict[str, str]]:
    """Read what the probes of one model found, and which symptoms they did not check and why."""
    everything = [kind.name for kind in (*probes.TRACE_SYMPTOMS, *probes.MODEL_SYMPTOMS)]
    if probed is None:
        return [], dict.fromkeys(everything, "the model was not probed")
    try:
        if probed["failed"]:
            return [], dict.fromkeys(everything, f"the probes failed: {probed['failed']}")
        shown = [symptoms.from_json(each) for each in probed["signs"]]
        missing = (
            {} if probed["traced"] else {kind.name: NOT_TRACED for kind in probes.TRACE_SYMPTOMS}
        )
        # An earlier bench did not record what it checked, and checked all but the last.
        unchecked = set(everything) - set(probed.get("looked", everything[:-1]))
        missing |= dict.fromkeys(unchecked, probed.get("unlooked", NOT_PROBED))
        noisy = [symptom.name for symptom in shown if symptom.name in probes.NOISY_OUTPUTS]
        if noisy:
            missing[symptoms.WRONG_GRADIENT.name] = f"no slope can be measured: {noisy[0]}"
        return shown, missing
    except (KeyError, TypeError) as error:
        raise RecordError(
            f"provenance.json: the probes of model '{model}' are damaged ({error!r}); "
            "run the suite again"
        ) from error


def _is_remedied(symptom: ObservedSymptom, runs: Sequence[AttackedCell]) -> bool:
    """Check whether a random model was attacked by averaged gradients and judged by a vote."""
    cells = [run.cell for run in runs if run.white]
    repeated = all(cell.samples > 1 and cell.predictions > 1 for cell in cells)
    return symptom.name == symptoms.UNSTABLE_PREDICTIONS.name and bool(cells) and repeated
