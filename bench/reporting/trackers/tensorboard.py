"""TensorBoard: event files in a folder, which `tensorboard --logdir` shows.

A curve for each figure and cell against eps. A step is a whole number there, so it is eps in
millionths; the tables of the run are its text.
"""

from pathlib import Path

from bench.reporting.trackers import RunSummary, Tracker

STEP = 1e-6
"""eps of one step."""


def log_to_tensorboard(run: RunSummary, where: str) -> str:
    """Write one event file into the run's own folder below `where`; returns that folder."""
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(where) / run.name
    with SummaryWriter(str(folder)) as writer:
        for point in sorted(run.points, key=lambda point: point.eps):  # steps must not go back
            writer.add_scalar(f"{point.figure}/{point.cell}", point.value, round(point.eps / STEP))
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
