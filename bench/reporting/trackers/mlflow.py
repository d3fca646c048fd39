"""Log a run to MLflow: to a server, a database or a folder, in the experiment "bench".

Each figure of each cell and eps is one metric, so MLflow compares runs by metric name; tables,
report and provenance are artifacts. MLflow's own telemetry is switched off.
"""

import os
import re
import time

from bench.reporting.trackers import RunSummary, Tracker

EXPERIMENT = "bench"
MAX_METRICS, MAX_PARAMS = 1000, 100
"""Maximum numbers per request."""
MAX_VALUE_LENGTH = 6000
"""Maximum length of a parameter's value."""
_OTHER = re.compile(r"[^\w\-. :/]", re.ASCII)


def log_to_mlflow(run: RunSummary, where: str) -> str:
    """Log a run to MLflow.

    Args:
        run: The run.
        where: Tracking URI or folder.

    Returns:
        Names of the experiment and the run.
    """
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=where)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    run_id = client.create_run(experiment, run_name=run.name).info.run_id
    now = int(time.time() * 1000)
    metrics = [
        Metric(_name(f"{p.metric}/{p.cell}/{p.eps_text}"), p.value, now, 0) for p in run.points
    ]
    params = [Param(_name(name), value[:MAX_VALUE_LENGTH]) for name, value in run.params.items()]
    for at in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics=metrics[at : at + MAX_METRICS])
    for at in range(0, len(params), MAX_PARAMS):
        client.log_batch(run_id, params=params[at : at + MAX_PARAMS])
    for path in run.files:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id)
    return f"experiment {EXPERIMENT}, run {run_id} in {where}"


def _name(text: str) -> str:
    """Replace characters that MLflow does not allow in a name."""
    return _OTHER.sub("_", text)


TRACKER = Tracker(
    package="mlflow",
    install='pip install "robustness-bench[mlflow]"',
    log=log_to_mlflow,
)
