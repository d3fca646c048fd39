"""Use bench from Python: `evaluate` one model under one attack, `run` a suite."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.analysis import queries, results, tables
from bench.attacks import objects
from bench.core import files, validation
from bench.core.contracts.types import Access, Goal, Norm, Precision, Stop
from bench.core.errors import RobustnessWarning, SuiteError
from bench.core.exclusive import run_alone
from bench.engine.default_dtype import default_to_float32
from bench.engine.source_ensemble import SourceEnsemble
from bench.evaluation import chunk_sizes, loading, make_evaluator
from bench.evaluation.adaptation_check import check_adaptations
from bench.evaluation.audit import findings
from bench.evaluation.audit.findings import Audit
from bench.evaluation.audit.probe_models import probe_models
from bench.execution import events, runner, sharding
from bench.execution.backends import subprocess
from bench.execution.backends.limits import parse_limits
from bench.execution.options import RunOptions, default_run_folder
from bench.reporting.display import Display
from bench.reporting.report import audit_view
from bench.storage.reader import StoredRecords
from bench.suite import attack_inputs, call_arguments, plan
from bench.suite.reader import parse_attack, read_suite

CALLER = "bench.evaluate"
DOUBTED = f"{CALLER}: the robust accuracy is open to doubt:"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Display):
    """The evaluation of one model under one attack; unpacks into table, records and images."""

    table: pd.DataFrame
    """One row per eps, the columns of table.csv."""
    records: pd.DataFrame
    """One row per example and eps, the columns of the per-example records."""
    adversarial: Tensor | None
    """(eps, n, c, h, w) if requested; examples that were not attacked are clean. A search for the
    least distance has the nearest image that it found also where that lies beyond the eps, so that
    the clean image was judged there (`fooled` is false)."""
    findings: tuple[str, ...]
    """Doubts about the numbers, a sentence each: preflight findings about the model, cells without
    a number, violations of the threat model, and symptoms that the attack failed."""
    audit: Audit
    """The symptoms themselves, and those that were not checked."""
    queries: pd.DataFrame
    """One row per eps and budget of queries, the columns of queries.csv; empty unless the attack
    searches by scores or labels."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.table, self.records, self.adversarial))

    def _list_remarks(self) -> list[str]:
        return [f"Check: {sentence}" for sentence in self.findings]


class SuiteResults(Display, results.RunResults):
    """The results of a suite, as `bench.run` returns them."""

    def _worst_cases(self) -> pd.DataFrame:
        return self.worst

    def _list_remarks(self) -> list[str]:
        return [
            f"audit of {model}: {audit_view.summarize_audit(self.audit, model)}"
            for model in self.audit.models
        ]


@run_alone()
@default_to_float32()
def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: Any,
    y: Any = None,
    *,
    attack: Any = "pgd",
    norm: Norm | None = None,
    eps: Any = None,
    params: Mapping[str, Any] | None = None,
    goal: Goal = "untargeted",
    target: str | int | None = None,
    stop: Stop | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    keep_adversarial: bool = False,
    source: nn.Module | Sequence[nn.Module] | None = None,
    precision: Precision = "float32",
    copied: bool = True,
    samples: int = 1,
    transforms: Mapping[str, Any] | None = None,
    predictions: int = 1,
    access: Access = "gradient",
    classes: int | None = None,
    allow: Sequence[str] = (),
    output: str | int | None = None,
    detector: Mapping[str, Any] | None = None,
    audit: bool | None = None,
    features: Sequence[str] = (),
    backward: Mapping[str, Any] | None = None,
    budgets: Sequence[int] | None = None,
    victim_queries: int | bool | None = None,
) -> Evaluation:
    """Measure the robust accuracy of a model under one attack.

    Every adversarial image is verified and counted as in a suite run, the records are audited, and
    a RobustnessWarning lists what was found. The model stays on `device`, otherwise unchanged.

    Args:
        model: Maps images (n, c, h, w) in [0, 1] to logits (n, classes); any callable where
            `access` is "scores" or "labels".
        x: Images (n, c, h, w), float in [0, 1] or 8-bit, as a tensor or an array; or images with
            labels: a tuple of both, a map-style data set, a DataLoader or the name of a data set
            (`bench.datasets.as_data` lists all forms).
        y: Integer labels (n,); None where `x` has them.
        attack: Registered name, `library:NAME` or `file.py:NAME`; a function (model, x, y) ->
            x_adv; an `Attack`; or an attack object of torchattacks or Foolbox.
        norm: Norm of the threat model; that of the attack object, or "linf", by default.
        eps: One radius or several, as any type of number or text such as "8/255"; that of the
            attack object, or 0.1, by default.
        params: The attack's params; its defaults otherwise. `loss` of an iterative attack may be a
            function (logits, labels, images) -> losses to ascend, (n,), or its "file.py:NAME".
        goal: "untargeted" or "targeted".
        target: Class of a targeted attack, or a rule such as "next".
        stop: "first-success" or "never"; "first-success" by default, "never" for a transfer.
        seed: Seed of every draw.
        device: "auto", "cpu", "cuda[:N]" or "xpu[:N]".
        batch_size: Rows per pass; by the memory of one row by default.
        keep_adversarial: Return the adversarial images.
        source: Craft on this model, which is all that the attacker sees, and judge by `model`
            (transfer attack); `model` by default. Of several models, the logits are averaged.
        precision: Of the attack's gradients; the model judges in full precision.
        copied: Take gradients from an accelerated model where one agrees with the model.
        samples: Passes averaged into each gradient, for a model that answers at random.
        transforms: Transformations at every gradient, for examples that transfer: any of
            `diversity`, `smallest`, `translation` and `scales`, as in a suite.
        predictions: Predictions of which the majority counts, likewise.
        access: What the attacker sees of `model`: "gradient", "scores" or "labels".
        classes: Classes of a model that shows labels alone; as many as y needs by default.
        allow: Names of preflight findings that do not stop the evaluation.
        output: Which part of `model`'s output is the logits: an index, a key or an attribute; or
            "binary" or "sigmoid" for one logit or probability an image (binary classifier).
        detector: How `model` rejects images: `output` (where its score is), `threshold`, `rejects`
            ("above" or "below") and `rejected`, which says how a rejected adversarial image counts
            ("robust" or "error").
        audit: Probe the model, too; by default where that takes few passes compared with the
            attack.
        features: Names of modules whose outputs such a loss gets as its fourth argument, by name.
        backward: Name of a module -> differentiable function of its input, or "file.py:NAME", whose
            gradient takes the place of the module's in the attack (BPDA).
        budgets: Numbers of queries, ascending, at which the result of an attack that asks for
            scores or labels is reported as well; one of a library needs batch_size=1.
        victim_queries: With a `source`, how many images of each example an iterative attack may
            show to `model`, whose labels it sees; True for 50, none by default.

    Returns:
        Table (one row per eps), per-example records, symptoms, results within the budgets and, on
        request, the images.

    Raises:
        SuiteError: An argument is invalid, the attack needs other images or more classes, or the
            model fails preflight.
        ContractError: The attack broke its contract.
        Exception: What the attack or the model itself raises.
    """
    checked = call_arguments.check_arguments(
        CALLER,
        call_arguments.CallArguments,
        params=params,
        transforms=transforms,
        backward=backward,
        features=features,
        budgets=budgets,
        seed=seed,
        batch_size=batch_size,
        keep_adversarial=keep_adversarial,
        copied=copied,
        predictions=predictions,
        access=access,
        classes=classes,
        allow=allow,
        output=output,
        audit=audit,
        device=device,
    )
    if source is not None:
        nets = call_arguments.check_source(CALLER, source)
        shares = [1 / len(nets)] * len(nets)
        source = nets[0] if source is nets[0] else SourceEnsemble(nets, shares, "logits")
    given = None if isinstance(attack, str) else objects.adapt_object(attack)
    raw: dict[str, Any] = {
        **attack_inputs.choose_threat(given, model if source is None else source, norm, eps),
        "name": attack if given is None else given.name,
        "goal": goal,
        "stop": stop or ("first-success" if source is None else "never"),
        "params": checked.params or {},
        "features": checked.features,
        "backward": checked.backward or {},
        "precision": precision,
        "samples": call_arguments.to_plain(samples),
        "transforms": checked.transforms,
        "target": call_arguments.to_plain(target),
        "victim_queries": call_arguments.to_plain(victim_queries),
    }
    if checked.budgets is not None:
        raw |= {"budgets": checked.budgets, "batch_size": checked.batch_size}
    entry = parse_attack(raw, CALLER, given and given.attack, has_source=source is not None)
    evaluator = make_evaluator.from_tensors(
        model,
        x,
        y,
        loading.select_device(device),
        source=source,
        seed=checked.seed,
        batch_size=checked.batch_size,
        use_acceleration=copied,
        predictions=checked.predictions,
        access=access,
        classes=checked.classes,
        allow=checked.allow,
        output=checked.output,
        detector=detector,
    )
    label, *sources = evaluator.models
    facts = {name: evaluator.model_facts(name) for name in evaluator.models}
    if sources:
        entry = dataclasses.replace(entry, source=sources[0])
    check_adaptations([entry], evaluator.models, evaluator.data, evaluator.device)
    crafting = facts[sources[0]] if sources else None
    task = plan.plan_task(label, entry, facts[label], checked.seed, "independent", crafting)
    if reason := task.cells[0].reason:
        raise SuiteError(f"{CALLER}: attack '{entry.name}': {reason}")
    size = chunk_sizes.choose_size(evaluator.device, evaluator.data.shape, len(task.cells))
    evaluator = dataclasses.replace(evaluator, chunk_examples=size)
    chunks = [
        evaluator.evaluate_chunk(task, first, last) for first, last in evaluator.attack_chunks(task)
    ]
    frame = pd.concat([chunk.frame for chunk in chunks], ignore_index=True)
    pieces = [piece for chunk in chunks for piece in chunk.pieces]
    stored = StoredRecords(frame, pieces, {})
    table = tables.cell_table(task.cells, stored, "", evaluator.data.name, evaluator.data.n)
    adversarial = torch.cat([c.x_adv for c in chunks], dim=1) if keep_adversarial else None
    probes = probe_models(evaluator, [task], full=audit)
    random = [name for name, loaded in evaluator.models.items() if loaded.random]
    audited = findings.audit_run(task.cells, table, stored, probes, random)
    sentences = (
        *(each for loaded in evaluator.models.values() for each in loaded.findings),
        *_describe_problems(table),
        *(symptom.sentence for symptom in audited.symptoms),
    )
    if sentences:
        text = "\n".join([DOUBTED, *sentences])
        warnings.warn(text, RobustnessWarning, stacklevel=4)  # at the caller of `evaluate`
    curves = queries.collect_curves(task.cells, table, stored)
    within = queries.query_table(curves)
    return Evaluation(table, frame, adversarial, sentences, audited, within)


def _describe_problems(table: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each cell that has no number or images that violate its threat model."""
    for row in table.to_dict("records"):
        where = f"{row['attack']}, {row['norm']}, eps {row['eps_text']}"
        if row["status"] != "ok":
            yield f"{where}: {row['status']}: {row['reason']}."
        elif row["violations"]:
            yield (
                f"{where}: {row['violations']} of {row['attacked']} attacked images violate the "
                "threat model, each counted as a failed attack."
            )


@run_alone()
@default_to_float32()
def run(
    suite: str,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    limit: int | None = None,
    batch_size: int | None = None,
    data_dir: str | Path | None = None,
    fresh: bool = False,
    copied: bool = True,
    deterministic: bool = False,
    shard: str = "1/1",
    isolate: bool = False,
    time_limit: float | None = None,
    memory_limit: str | None = None,
    keep_adversarial: str | None = None,
) -> SuiteResults:
    """Run a suite as `bench run` does.

    Progress is logged by the logger "bench" (`bench.execution.events`).

    Args:
        suite: Path of a suite, or the name of a shipped one.
        out: Folder of the run; one named after the suite by default.
        device: "auto", "cpu", "cuda[:N]" or "xpu[:N]".
        limit: Most examples, besides the suite's own limit.
        batch_size: Rows per pass; by the memory of one row by default.
        data_dir: Folder of data sets; BENCH_DATA_DIR or the user's cache by default.
        fresh: Discard what an earlier run left in `out`.
        copied: Take gradients from accelerated models where they agree with the model.
        deterministic: Make another run on this device give the same bits.
        shard: "I/N": compute shard I of N; cells of the others are missing in the result.
        isolate: Run in a child process, which a model or an attack may crash;
            `bench.execution.backends.subprocess` states what that requires of a script.
        time_limit: Seconds without a heartbeat after which that process is stopped.
        memory_limit: Its memory, such as "2GiB".
        keep_adversarial: Keep all adversarial images while they take no more than this, such as
            "2GiB"; `bench.storage.adversarial_images.read` reads them.

    Returns:
        The results, read from the run's folder.

    Raises:
        SuiteError: The user's mistakes, all of a suite's at once.
    """
    given = call_arguments.check_arguments(
        "bench.run",
        call_arguments.RunArguments,
        device=device,
        limit=limit,
        batch_size=batch_size,
        fresh=fresh,
        copied=copied,
        deterministic=deterministic,
        shard=shard,
        isolate=isolate,
        time_limit=time_limit,
        memory_limit=memory_limit,
        keep_adversarial=keep_adversarial,
    )
    checked = read_suite(suite)
    part = sharding.parse_shard(shard)
    folder = part.folder(Path(out) if out is not None else default_run_folder(checked.name))
    options = RunOptions(
        device=device,
        limit=given.limit,
        batch_size=given.batch_size,
        data_dir=files.data_folder(data_dir),
        fresh=fresh,
        copied=copied,
        image_quota=(
            validation.byte_size("keep_adversarial", keep_adversarial) if keep_adversarial else 0
        ),
        deterministic=deterministic,
        shard=part,
        command=f"bench.run({suite!r})",
    )
    limits = parse_limits(isolate, time_limit, memory_limit)
    backend = None if limits is None else subprocess.SubprocessBackend(limits)
    runner.run_suite(checked, folder, options, events.log_event, backend)
    found = results.read_results(folder)
    return SuiteResults(found.folder, found.provenance, found.plan, found.stored)
