"""MLflow: a run of the experiment "bench", on a server, in a database or in a folder.

A metric for each figure, cell and eps, so that MLflow lays runs beside each other by name; tables,
report and provenance are artifacts. MLflow's own telemetry is switched off.
"""

import os
import re
import time

from bench.reporting.trackers import RunSummary, Tracker

EXPERIMENT = "bench"
MAX_METRICS, MAX_PARAMS = 1000, 100
"""That MLflow takes at once."""
MAX_VALUE_LENGTH = 6000
"""Characters of a parameter's value."""
_OTHER = re.compile(r"[^\w\-. :/]", re.ASCII)


def log_to_mlflow(run: RunSummary, where: str) -> str:
    """Log the run to the tracking URI or folder `where`; returns the experiment and run."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=where)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT)
    made = client.create_run(experiment, run_name=run.name).info.run_id
    now = int(time.time() * 1000)
    metrics = [
        Metric(_name(f"{p.figure}/{p.cell}/{p.eps_text}"), p.value, now, 0) for p in run.points
    ]
    params = [Param(_name(name), value[:MAX_VALUE_LENGTH]) for name, value in run.params.items()]
    for at in range(0, len(metrics), MAX_METRICS):
        client.log_batch(made, metrics=metrics[at : at + MAX_METRICS])
    for at in range(0, len(params), MAX_PARAMS):
        client.log_batch(made, params=params[at : at + MAX_PARAMS])
    for path in run.files:
        client.log_artifact(made, str(path))
    client.set_terminated(made)
    return f"experiment {EXPERIMENT}, run {made} in {where}"


def _name(text: str) -> str:
    """A name that MLflow takes: letters, digits and a few signs."""
    return _OTHER.sub("_", text)


TRACKER = Tracker(
    package="mlflow",
    # Not an extra of bench's: torchattacks asks for a requests that is too old for it on paper,
    # and neither bench nor torchattacks imports that.
    install="pip install mlflow-skinny; pip check then names torchattacks, without consequence",
    log=log_to_mlflow,
)
