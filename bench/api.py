"""bench from Python: `evaluate` one model under one attack, `run` a suite."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.analysis import results, tables
from bench.core import validation
from bench.core.contracts.types import Access, Goal, Norm, Precision, Stop
from bench.core.errors import RobustnessWarning, SuiteError
from bench.datasets import inputs
from bench.datasets.in_memory import make_data
from bench.engine import timing
from bench.evaluation import loading
from bench.evaluation.audit import findings
from bench.evaluation.audit.findings import Audit
from bench.evaluation.audit.probe_models import probe_models
from bench.evaluation.evaluator import Evaluator
from bench.execution import events, runner, sharding
from bench.execution import options as execution_options
from bench.execution.backends import subprocess
from bench.models.preflight import checks
from bench.storage.reader import StoredRecords
from bench.suite import plan
from bench.suite.reader import parse_attack, read_suite

DOUBTED = "bench.evaluate: the robust accuracy is open to doubt:"


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """One model under one attack; unpacks into table, records and adversarial images."""

    table: pd.DataFrame
    """One row per eps, the columns of table.csv."""
    records: pd.DataFrame
    """One row per example and eps, the columns of the per-example records."""
    adversarial: Tensor | None
    """(eps, n, c, h, w) if it was asked for; examples that were not attacked are clean."""
    findings: tuple[str, ...]
    """What a reader of the numbers must know, a sentence each: what was found unfit in the model
    before it was attacked, and the signs of the audit that the attack failed."""
    audit: Audit
    """The signs themselves, and those that were not looked for."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.table, self.records, self.adversarial))


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    attack: str = "pgd",
    norm: Norm = "linf",
    eps: float | str | Sequence[float | str] = 0.1,
    params: Mapping[str, Any] | None = None,
    goal: Goal = "untargeted",
    target: str | int | None = None,
    stop: Stop | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    keep_adversarial: bool = False,
    source: nn.Module | None = None,
    precision: Precision = "float32",
    copied: bool = True,
    samples: int = 1,
    predictions: int = 1,
    access: Access = "gradient",
    classes: int | None = None,
    allow: Sequence[str] = (),
    audit: bool | None = None,
) -> Evaluation:
    """How robust `model` is on (x, y) under one attack at one or several eps.

    Shapes: x float in [0, 1] or 8-bit, (n, c, h, w); y integer, (n,); `bench.datasets.inputs` lists
    what is taken. Everything is verified and counted as in a suite; the model comes back as it was,
    on `device`. With a `source`, the examples are crafted on that model, which is all that the
    attacker sees, and judged by `model` (transfer). stop is "first-success", for a transfer
    "never", unless given. Gradients come from a faster copy of the model where one agrees with it
    and `copied` allows it, in `precision`; the model judges. For a model that answers at random:
    each look is the mean of `samples`, and a verdict the class that most of `predictions` give. A
    model that only answers queries, or is to be attacked as one, has `access` "scores" or "labels";
    it may be any callable, of so many `classes` (labels alone do not say; as many as y needs unless
    given). `allow` names findings that do not stop it. The records are audited as a suite's are,
    and a RobustnessWarning tells what was found; `audit` says whether the model is probed as well,
    unless given where that takes few passes beside the attack's.
    Raises: SuiteError for an unknown attack, parameter, norm or target, images outside [0, 1],
    labels the model has no class for, an attack that needs other images or more classes, or a
    model that does not return logits; ContractError if the attack breaks its promise; whatever
    the attack or the model raises.
    """
    many = [eps] if isinstance(eps, int | float | str) else list(eps)
    raw: dict[str, Any] = {
        "name": attack,
        "norm": norm,
        "eps": many,
        "goal": goal,
        "stop": stop or ("first-success" if source is None else "never"),
        "params": dict(params or {}),
    }
    if precision != "float32":
        raw["precision"] = precision
    if samples != 1:
        raw["samples"] = samples
    if predictions < 1:
        raise SuiteError(f"bench.evaluate: predictions: expected at least 1, got {predictions}")
    if target is not None:
        raw["target"] = target
    entry = parse_attack(raw, "bench.evaluate")
    where = loading.select_device(device)
    loading.check_tensors("given", x, y)
    data = inputs.check_data("given", make_data("given", x, y, ()))
    assert data.labels is not None
    label = type(model).__name__
    crafting = "source" if label != "source" else "the source"
    shown = loading.restrict_access(label, model, access, classes or int(data.labels.max()) + 1)
    models = {label: shown} if source is None else {label: shown, crafting: source}
    subjects = {
        name: checks.preflight(
            name, each.to(where), data, where, predictions if name == label else 1, allow
        )
        for name, each in models.items()
    }
    sample = data.read(0, 1).to(where)
    rows = {
        name: batch_size or timing.rows_per_pass(each.model, sample)
        for name, each in subjects.items()
    }
    session = Evaluator(
        suite="", seed=seed, device=where, data=data, subjects=subjects, rows=rows,
        fixed_rows=batch_size is not None, copied=copied,
    )  # fmt: skip
    facts = {name: session.facts(name) for name in models}
    if source is not None:
        entry = dataclasses.replace(entry, source=crafting)
    task = plan.plan_task(label, entry, facts[label], seed, "independent", facts.get(crafting))
    if reason := task.cells[0].reason:
        raise SuiteError(f"bench.evaluate: attack '{attack}': {reason}")
    shards = [session.shard(task, first, last) for first, last in session.shards()]
    frame = pd.concat([shard.frame for shard in shards], ignore_index=True)
    pieces = [piece for shard in shards for piece in shard.pieces]
    stored = StoredRecords(frame, pieces, {})
    table = tables.cell_table(task.cells, stored, "", data.name, data.n)
    adversarial = torch.cat([s.x_adv for s in shards], dim=1) if keep_adversarial else None
    probes = probe_models(session, [task], {}, full=audit)
    random = [name for name, subject in subjects.items() if subject.random]
    told = findings.audit_run(task.cells, table, stored, probes, random)
    sentences = tuple(each for subject in subjects.values() for each in subject.findings)
    sentences += tuple(sign.sentence for sign in told.signs)
    if sentences:
        warnings.warn("\n".join([DOUBTED, *sentences]), RobustnessWarning, stacklevel=2)
    return Evaluation(table, frame, adversarial, sentences, told)


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
) -> results.RunResults:
    """Run the suite of a path or a shipped name, as `bench run` does; its results, read back.

    What happens is told to the logger "bench" (`bench.execution.events`). With `deterministic`
    another run on this device gives the same bits. Of a share "I/N" the cells are missing that the
    others make. With `isolate` or a limit (seconds without a sign of life; a size such as "2GiB")
    all is done in a process of its own, which a model or an attack may crash: `isolation.run` says
    what that asks of a script. `keep_adversarial` keeps every adversarial image while all take no
    more than that, such as "2GiB"; `bench.storage.adversarial_images` reads them.
    Raises: SuiteError for the user's mistakes, all of a suite's at once.
    """
    checked = read_suite(suite)
    share = sharding.parse_shard(shard)
    folder = share.folder(
        Path(out) if out is not None else execution_options.default_run_folder(checked.name)
    )
    options = execution_options.RunOptions(
        device=device,
        limit=limit,
        batch_size=batch_size,
        data_dir=loading.data_folder(data_dir),
        fresh=fresh,
        copied=copied,
        keep=validation.byte_size("keep_adversarial", keep_adversarial) if keep_adversarial else 0,
        deterministic=deterministic,
        share=share,
        command=f"bench.run({suite!r})",
    )
    limits = subprocess.parse_limits(isolate, time_limit, memory_limit)
    if limits is None:
        runner.run_suite(checked, folder, options, events.log_event)
    else:
        subprocess.run(checked, folder, options, events.log_event, limits)
    return results.read_results(folder)
