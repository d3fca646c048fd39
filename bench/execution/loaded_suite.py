"""Description of a loaded suite in plain data, for a process that has loaded no model."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from bench.core.contracts.types import Shape
from bench.evaluation import chunk_sizes
from bench.evaluation.certification import store
from bench.evaluation.evaluator import Evaluator
from bench.storage import environment
from bench.suite import plan
from bench.suite.identity import ModelFacts
from bench.suite.schema import Suite


class DataSummary(NamedTuple):
    """The data set of a run, without images and labels."""

    name: str
    n: int
    shape: Shape
    classes: tuple[str, ...]
    fingerprint: str
    mapping: dict[str, str]


class ModelSummary(NamedTuple):
    """A model of a run, without the model."""

    facts: ModelFacts
    findings: tuple[str, ...]
    """Sentences of preflight."""
    logits: list[list[float | None]] | None
    """The ten largest logits of each of the first images, largest first; None if randomised."""
    unfit: str
    """Why it cannot be attacked; "" if it can."""


class LoadedSuite(NamedTuple):
    """Everything that a runner needs to know of the process that has loaded the models."""

    device: str
    data: DataSummary
    models: dict[str, ModelSummary]
    chunks: list[tuple[int, int]]
    """(first, last) of each chunk of examples of the standard size."""
    chunk_examples: int
    """Examples of a chunk that is attacked, where outcomes do not depend on the batch."""
    certification: list[plan.CertificationTask]
    """With the reason where a model has no bounds."""
    environment: dict[str, Any]
    libraries: list[str]
    """Optional libraries that are imported."""
    files: dict[str, str]
    """sha256 of the user's files that the suite reads."""

    @property
    def facts(self) -> dict[str, ModelFacts]:
        """Model -> what the planner needs."""
        return {label: model.facts for label, model in self.models.items()}

    @property
    def rows(self) -> dict[str, int]:
        """Model -> rows per pass."""
        return {label: model.facts.rows for label, model in self.models.items()}

    def attack_chunks(self, task: plan.AttackTask) -> list[tuple[int, int]]:
        """List the chunks that a task is attacked in.

        Args:
            task: Task of the suite.

        Returns:
            (first, last) of each chunk, `last` excluded.
        """
        if chunk_sizes.depends_on_batch(task, self.facts):
            return self.chunks
        return chunk_sizes.chunk_bounds(self.data.n, self.chunk_examples)


def describe_evaluator(
    evaluator: Evaluator, suite: Suite, announce: Callable[[str], None]
) -> LoadedSuite:
    """Describe the data and models of an evaluator, and this process.

    Args:
        evaluator: Loaded from `suite`.
        suite: Checked suite.
        announce: Called with a description before a model is converted into layers.

    Returns:
        Plain data, which can be pickled.
    """
    certification = []
    for task in store.plan_certification(suite, evaluator):
        announce(f"model '{task.model}', reading its layers")
        certification.append(store.check_readable(evaluator, task))
    data = evaluator.data
    return LoadedSuite(
        device=str(evaluator.device),
        data=DataSummary(
            data.name, data.n, data.shape, data.classes, data.fingerprint, dict(data.mapping)
        ),
        models={
            label: ModelSummary(
                facts=evaluator.model_facts(label),
                findings=loaded.findings,
                logits=_largest_logits(loaded.logits),
                unfit=evaluator.unfit.get(label, ""),
            )
            for label, loaded in evaluator.models.items()
        },
        chunks=evaluator.chunks(),
        chunk_examples=evaluator.chunk_examples,
        certification=certification,
        environment=environment.describe_environment(evaluator.device),
        libraries=environment.list_loaded_packages(),
        files=environment.hash_user_files(suite),
    )


def explain_unfit(task: plan.AttackTask, unfit: Mapping[str, str]) -> str:
    """Explain why no cell of a task can be run.

    Args:
        task: Task of the suite.
        unfit: Model -> why it cannot be attacked.

    Returns:
        A sentence about the model or its source; "" if both can be attacked.
    """
    for label in task.models:
        if label in unfit:
            return f"model '{label}' {unfit[label]}"
    return ""


def _largest_logits(logits: Tensor | None) -> list[list[float | None]] | None:
    """The ten largest logits of each image, six digits each; None for one that is not finite."""
    if logits is None:
        return None
    rows = logits.topk(min(10, logits.shape[1]), dim=1).values.tolist()
    return [[float(f"{x:.6g}") if math.isfinite(x) else None for x in row] for row in rows]
