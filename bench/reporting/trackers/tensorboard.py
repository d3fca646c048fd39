"""Log a run to TensorBoard: event files in a folder, for `tensorboard --logdir`.

Each figure of each cell is a curve against eps. A step is a whole number, so it is eps in
millionths; the report of the run is its text.
"""

from pathlib import Path

from bench.reporting.trackers import RunSummary, Tracker

STEP = 1e-6
"""Difference in eps per step."""


def log_to_tensorboard(run: RunSummary, where: str) -> str:
    """Write one event file into a folder named after the run.

    Args:
        run: The run.
        where: Parent folder.

    Returns:
        The folder.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(where) / run.name
    with SummaryWriter(str(folder)) as writer:
        for point in sorted(run.points, key=lambda point: point.eps):  # steps must not go back
            writer.add_scalar(f"{point.metric}/{point.cell}", point.value, round(point.eps / STEP))
        lines = [f"| {name} | {value} |" for name, value in run.params.items()]
        table = "\n".join(["| parameter | value |", "|---|---|", *lines])
        writer.add_text("parameters", table)
        for path in run.files:
            if path.suffix == ".md":
                text = path.read_text(encoding="utf-8")
                writer.add_text(path.name, text)
    return str(folder)


TRACKER = Tracker(
    package="tensorboard",
    install='pip install "robustness-bench[tensorboard]"',
    log=log_to_tensorboard,
)
