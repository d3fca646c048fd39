"""Load everything that a suite names into an evaluator."""

from collections.abc import Callable
from pathlib import Path

from bench.core import files
from bench.evaluation import loading, make_evaluator
from bench.evaluation.evaluator import Evaluator
from bench.execution.options import RunOptions
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
    return make_evaluator.from_suite(
        suite,
        device,
        options.data_dir,
        limit=options.limit,
        batch_size=options.batch_size,
        use_acceleration=options.copied,
        keep_all_images=options.image_quota > 0,
        on_load=lambda label: announce(f"model '{label}', loading it"),
    )
