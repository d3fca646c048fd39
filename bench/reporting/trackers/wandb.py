"""Log a run to Weights & Biases, in the project that the user names.

Each figure of each cell is a curve against eps; tables, report and provenance are one artifact.
`WANDB_MODE=offline` writes a folder `wandb` that `wandb sync` uploads later.
"""

from itertools import groupby

from bench.reporting.trackers import RunSummary, Tracker


def log_to_wandb(run: RunSummary, where: str) -> str:
    """Log a run to Weights & Biases.

    Args:
        run: The run.
        where: Project, or "entity/project".

    Returns:
        The address of the run, or the folder of an offline one.
    """
    import wandb

    entity, _, project = where.rpartition("/")
    settings = wandb.Settings(console="off", silent=True)  # bench prints where the run is
    with wandb.init(
        project=project,
        entity=entity or None,
        name=run.name,
        config=dict(run.params),
        settings=settings,
    ) as session:
        session.define_metric("eps", hidden=True)
        session.define_metric("*", step_metric="eps")
        by_eps = sorted(run.points, key=lambda point: point.eps)
        for eps, points in groupby(by_eps, key=lambda point: point.eps):
            figures = {f"{point.metric}/{point.cell}": point.value for point in points}
            session.log({"eps": eps, **figures})
        artifact = wandb.Artifact(f"run-{session.id}", type="bench-run")
        for path in run.files:
            artifact.add_file(str(path))
        session.log_artifact(artifact)
        return str(session.url or session.dir)


TRACKER = Tracker(
    package="wandb",
    install='pip install "robustness-bench[wandb]"',
    log=log_to_wandb,
)
