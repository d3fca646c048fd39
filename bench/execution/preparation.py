"""Load everything that a suite names into an evaluator."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.core import files, streams
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.evaluation import loading
from bench.evaluation.evaluator import Evaluator
from bench.execution.options import RunOptions
from bench.execution.work import describe_failure
from bench.models import fingerprint
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.suite import plan
from bench.suite.schema import Suite


def load_evaluator(
    suite: Suite,
    out: Path | None,
    options: RunOptions,
    announce: Callable[[str], None] = lambda activity: None,
) -> Evaluator:
    """Load the data and the models of a suite.

    A model whose own code fails is not an error: its cells are refused later with the reason.

    Args:
        suite: Checked suite.
        out: Folder to be written to, which is checked first; None if nothing is written.
        options: Device, limit, batch size and folder of data.
        announce: Called with a description before the code of each model runs.

    Returns:
        Evaluator on the selected device.

    Raises:
        SuiteError: The user's mistakes, one sentence each.
    """
    device = loading.select_device(options.device)
    if out is not None:
        files.check_writable(out / "records")
    data = loading.load_data(suite.data, suite.base, options.data_dir, options.limit)
    subjects, rows, unfit = {}, {}, {}
    notes: list[str] = []
    for entry in suite.models:
        announce(f"model '{entry.label}', loading it")
        try:
            with streams.protect_streams(notes.append, f"model '{entry.label}'"):
                subject = loading.load_model(
                    entry, suite.base, suite.seed, data, device, options.data_dir
                )
                sample = data.read(0, 1).to(device)
                rows[entry.label] = options.batch_size or timing.rows_per_pass(
                    subject.model, sample
                )
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # user's code may raise anything
            why = f"could not be made ready: {describe_failure(error)}"
            unfit[entry.label], rows[entry.label] = why, 0
            subjects[entry.label] = checks.unfit(entry.label, describe_failure(error))
            continue
        subjects[entry.label] = subject
        for attack in suite.attacks:
            if attack.goal == "targeted":
                plan.target_class(attack, subject.classes, data.classes)
    _check_distinct(subjects)
    return Evaluator(
        suite=suite.name,
        seed=suite.seed,
        device=device,
        data=data,
        subjects=subjects,
        rows=rows,
        fixed_rows=options.batch_size is not None,
        copied=options.copied,
        keep=options.image_quota > 0,
        unfit=unfit,
        notes=notes,
    )


def _check_distinct(subjects: Mapping[str, LoadedModel]) -> None:
    """Raise a SuiteError if two models share a fingerprint and differ in their logits.

    Records of one could then be taken for records of the other.
    """
    for (label, one), (other, two) in itertools.combinations(subjects.items(), 2):
        if one.fingerprint != two.fingerprint or one.logits is None or two.logits is None:
            continue
        if fingerprint.are_apart(one.logits, two.logits):
            raise SuiteError(
                f"models '{label}' and '{other}': expected one's answers from what is one model as "
                "far as bench can see, got other logits on the first images; let what sets them "
                "apart be among their params, or an attribute of theirs"
            )
