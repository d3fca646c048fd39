"""Run a whole suite on Python objects: models in a notebook, with table, curves and report.

The plan, the evaluation, the records and the report are those of a suite; only the models, the data
and the attacks are objects in place of names.
"""

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import results
from bench.attacks import objects
from bench.core.contracts.types import Access, Norm
from bench.core.errors import SuiteError, first_line
from bench.core.exclusive import run_alone
from bench.core.validation import Validator
from bench.datasets.as_data import as_data
from bench.engine.default_dtype import default_to_float32
from bench.evaluation import live_models, loading, make_evaluator
from bench.execution import events, runner
from bench.execution.backends.inline import InlineBackend
from bench.execution.options import RunOptions
from bench.reporting.display import Display
from bench.suite import attack_inputs, attack_tables, call_arguments, composer
from bench.suite.attack_tables import SuiteDefaults
from bench.suite.schema import DataEntry, ModelEntry, Suite
from bench.suite.unions import read_unions

CALLER = "bench.benchmark"
CURVE_COLUMNS = [
    "model", "attack", "norm", "goal", "eps", "n", "robust_accuracy", "robust_low", "robust_high",
]  # fmt: skip


class Benchmark(Display):
    """The results of `bench.benchmark`; `results` holds every other table of a run."""

    def __init__(self, folder: Path, temporary: bool) -> None:
        """Read the results of a run.

        Args:
            folder: Folder of the run.
            temporary: Whether the folder is deleted together with this object.
        """
        self.results = results.read_results(folder)
        if temporary:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def _worst_cases(self) -> pd.DataFrame:
        return self.results.worst

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.results.folder

    @property
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        """One row per cell, the columns of table.csv."""
        return self.results.table

    @property
    def records(self) -> pd.DataFrame:
        """One row per example and cell, the columns of the per-example records."""
        return self.results.stored.frame

    @property
    def worst(self) -> pd.DataFrame:
        """Worst case over all attacks, one row per model, norm, goal and eps."""
        return self.results.worst

    @property
    def unions(self) -> pd.DataFrame:
        """Robust accuracy under threat models of several norms together, one row per union."""
        return self.results.unions

    @property
    def classes(self) -> pd.DataFrame:
        """Outcomes by class, one row per class of each cell and of the worst case at each eps."""
        return self.results.classes

    @property
    def curves(self) -> pd.DataFrame:
        """Robust accuracy by eps with its 95 % interval, one row per point of a curve."""
        rows = self.table.loc[self.table["status"] == "ok", CURVE_COLUMNS]
        return rows.sort_values(["model", "attack", "norm", "goal", "eps"], ignore_index=True)

    def report(self, path: str | Path) -> Path:
        """Write the report of the run: tables, plots, audit, comparisons and worst case.

        Args:
            path: A file that ends in .html, which contains all of it; or a folder, which also gets
                the tables as CSV and the plots.

        Returns:
            Path of the page.

        Raises:
            SuiteError: The place cannot be written.
        """
        from bench.reporting import run_output

        page, to = run_output.write_run_output(self.results, self.folder), Path(path)
        try:
            if to.suffix == ".html":
                to.parent.mkdir(parents=True, exist_ok=True)
                return Path(shutil.copyfile(page, to))
            if to.resolve() != self.folder.resolve():
                shutil.copytree(self.folder, to, dirs_exist_ok=True)
            return to / page.name
        except OSError as error:
            reason = first_line(error)
            raise SuiteError(f"{to}: the report could not be written: {reason}") from error


@run_alone()
@default_to_float32()
def benchmark(
    models: Any,
    data: Any,
    labels: Any = None,
    *,
    attacks: Sequence[Any] | Mapping[str, Any],
    norm: Norm | None = None,
    eps: Any = None,
    unions: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    title: str = "",
    seed: int = 0,
    limit: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    copied: bool = True,
    access: Access = "gradient",
    allow: Sequence[str] = (),
    output: str | int | None = None,
    detector: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Benchmark:
    """Run every attack against every model, as a suite does, on Python objects.

    Args:
        models: Label -> model, or one model; each maps images (n, c, h, w) in [0, 1] to logits.
        data: Images (n, c, h, w), or images with labels in any form of `bench.evaluate`.
        labels: Integer labels (n,); None where `data` has them.
        attacks: Each as in `bench.evaluate`, or a mapping with keys of an [[attacks]] table;
            labels are the names, or the keys of a mapping label -> attack.
        norm: Norm of the attacks; that of an attack object, or "linf", by default.
        eps: One radius or several, as in `bench.evaluate`.
        unions: Label -> norm -> radius: threat models that the models are to withstand together,
            beside the union of all norms at their largest eps.
        out: Folder of the run, which a later call resumes; a temporary one by default, which is
            deleted with the result.
        title: Title of the report.
        seed: Seed of every draw.
        limit: Most examples.
        device: "auto", "cpu", "cuda[:N]" or "xpu[:N]".
        batch_size: Rows per pass; by the memory of one row by default.
        copied: Take gradients from accelerated models where they agree with the model.
        access: What an attacker sees of the models: "gradient", "scores" or "labels".
        allow: Names of preflight findings that do not stop the run.
        output: Which part of the models' output is the logits, as in `bench.evaluate`.
        detector: How the models reject images, likewise.
        fresh: Discard what an earlier run left in `out`.

    Returns:
        Table, records, curves and report.

    Raises:
        SuiteError: An argument is invalid, or a model fails preflight.
    """
    checked = call_arguments.check_arguments(
        CALLER,
        call_arguments.CallArguments,
        seed=seed,
        limit=limit,
        device=device,
        batch_size=batch_size,
        copied=copied,
        access=access,
        allow=allow,
        output=output,
        title=title,
        fresh=fresh,
    )
    if isinstance(models, list | tuple):
        got = type(models).__name__
        raise SuiteError(f"{CALLER}: models: expected label -> model, or one model, got a {got}")
    given_models = models if isinstance(models, Mapping) else {"": models}
    if not given_models:
        raise SuiteError(f"{CALLER}: models: expected at least one, got none")
    entries = [
        live_models.make_entry(
            model,
            str(label),
            access=access,
            allow=checked.allow,
            output=checked.output,
            detector=detector,
        )
        for label, model in given_models.items()
    ]
    given = as_data(data, labels, limit=checked.limit)
    if given.labels is None:
        raise SuiteError(f"{CALLER}: data: expected labels, got images alone")
    suite = _make_suite(entries, given.name, attacks, norm, eps, unions or {}, title, checked.seed)
    evaluator = make_evaluator.from_objects(
        suite,
        {entry.label: model for entry, model in zip(entries, given_models.values(), strict=True)},
        given,
        loading.select_device(device),
        batch_size=checked.batch_size,
        use_acceleration=copied,
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-") if out is None else out)
    options = RunOptions(
        device=device,
        limit=checked.limit,
        batch_size=checked.batch_size,
        copied=copied,
        fresh=fresh,
        command="bench.benchmark(...)",
    )
    with contextlib.ExitStack() as temporary:
        if out is None:
            temporary.callback(shutil.rmtree, folder, ignore_errors=True)
        runner.run_suite(suite, folder, options, events.log_event, InlineBackend(evaluator))
        benchmark = Benchmark(folder, temporary=out is None)
        temporary.pop_all()  # the object deletes it from now on
    return benchmark


def _make_suite(
    models: Sequence[ModelEntry],
    data: str,
    attacks: Sequence[Any] | Mapping[str, Any],
    norm: Norm | None,
    eps: Any,
    unions: Mapping[str, Mapping[str, Any]],
    title: str,
    seed: int,
) -> Suite:
    """Make the checked suite of the objects."""
    check = Validator(CALLER)
    model_labels = [entry.label for entry in models]
    expanded, tables = [], []
    for at, (raw, attack) in enumerate(_read_attacks(attacks, norm, eps)):
        key = f"attacks[{at}]"
        expanded.append(
            attack_tables.expand_table(
                check, raw, key, Path(), SuiteDefaults(), model_labels, attack
            )
        )
        tables.append(raw)
    labels = [label for table in expanded for label in table.labels]
    check.unique("attacks", labels)
    if not labels:
        check.say("attacks", "expected at least one, got none")
    attack_entries = [entry for table in expanded for entry in table.entries]
    attack_tables.check_source_labels(check, attack_entries)
    together = _list_unions(check, unions)
    attacked = [
        (entry.goal, entry.norm, radius.value) for entry in attack_entries for radius in entry.eps
    ]
    chosen = read_unions(check, {"unions": together}, None if check.problems else attacked)
    check.stop_if_wrong()
    name = "benchmark"
    text = composer.format_suite(
        composer.OBJECTS_HEADER,
        {"schema": 1, "name": name, "title": title, "seed": seed},
        {"name": data},
        [{"name": entry.name, "label": entry.label} for entry in models],
        tables,
        together,
    )
    return Suite(
        name=name,
        title=title or f"{', '.join(model_labels)} on {data}",
        seed=seed,
        stop="first-success",
        sweep="independent",
        data=DataEntry(name=data),
        models=tuple(models),
        attacks=tuple(attack_entries),
        crosschecks=(),
        published=(),
        certify=(),
        unions=chosen,
        base=Path(),
        text=text,
    )


def _list_unions(check: Validator, unions: Any) -> list[dict[str, Any]]:
    """List the tables [[unions]] of the argument: label -> norm -> radius."""
    if not isinstance(unions, Mapping) or not all(
        isinstance(threats, Mapping) for threats in unions.values()
    ):
        check.say("unions", f"expected label -> norm -> radius, got {unions!r}")
        return []
    return [
        {
            "label": label,
            "threats": [
                {"norm": norm, "eps": radius}
                for norm, given in threats.items()
                for radius in attack_inputs.list_radii(given)
            ],
        }
        for label, threats in unions.items()
    ]


def _read_attacks(
    attacks: Sequence[Any] | Mapping[str, Any], norm: Norm | None, eps: Any
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the table of each attack, and the attack itself where it is an object."""
    if isinstance(attacks, str) or not isinstance(attacks, Mapping | Sequence):
        attacks = [attacks]
    named = [*attacks.items()] if isinstance(attacks, Mapping) else [(None, a) for a in attacks]
    for label, item in named:
        own = dict(item) if isinstance(item, Mapping) else {"name": item}
        which = own.pop("name", None)
        adapted = None if isinstance(which, str) else objects.adapt_object(which)
        threat = attack_inputs.choose_threat(
            adapted,
            adapted and adapted.model,  # a copy of the object attacks each model
            own.pop("norm", norm),
            own.pop("eps", eps),
        )
        name = which if adapted is None else adapted.name
        table = {"name": name, "label": label or name, **threat, **call_arguments.to_plain(own)}
        yield table, adapted and adapted.attack
