"""Build the evaluator of a suite, of a suite of Python objects, or of one model on given images."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.core.contracts.detector import Detector
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError
from bench.datasets.as_data import as_data
from bench.engine.device import enter_device
from bench.evaluation import live_models, loading
from bench.evaluation.adaptation_check import check_adaptations
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.suite_models import choose_rows, load_suite_models
from bench.models.preflight.checks import LoadedModel
from bench.suite.schema import ModelEntry, Suite


def from_suite(
    suite: Suite,
    device: torch.device,
    data_dir: Path,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    use_acceleration: bool = True,
    keep_all_images: bool = False,
    on_load: Callable[[str], object] = lambda label: None,
) -> Evaluator:
    """Load the data and the models that a suite names.

    A model whose code raises is noted in `unfit`, and its cells fail.

    Args:
        suite: The checked suite.
        device: Where models and images are placed.
        data_dir: Folder of data sets and of weights that are not shipped.
        limit: Most examples, besides the suite's own limit.
        batch_size: Rows per pass; by the memory of one row unless given.
        use_acceleration: Whether attacks may use accelerated models.
        keep_all_images: Whether all adversarial images are wanted.
        on_load: Called with a model's label before it is loaded.

    Returns:
        The evaluator of the suite.

    Raises:
        SuiteError: Data, weights or a target are missing or invalid, a model fails preflight,
            or two models cannot be distinguished.
    """
    data = loading.load_data(suite.data, suite.base, data_dir, limit)

    def load(entry: ModelEntry) -> LoadedModel:
        on_load(entry.label)
        return loading.load_model(entry, suite.base, suite.seed, data, device, data_dir)

    return _load_evaluator(suite, data, device, load, batch_size, use_acceleration, keep_all_images)


def from_objects(
    suite: Suite,
    models: Mapping[str, Any],
    data: Data,
    device: torch.device,
    *,
    batch_size: int | None = None,
    use_acceleration: bool = True,
) -> Evaluator:
    """Build the evaluator of a suite whose models and data are Python objects.

    Args:
        suite: The suite, with an entry for each model.
        models: Label -> module; any callable where its entry's access is "scores" or "labels".
        data: Checked images and labels.
        device: Where models and images are placed.
        batch_size: Rows per pass; by the memory of one row unless given.
        use_acceleration: Whether attacks may use accelerated models.

    Returns:
        The evaluator of the suite; a model whose code raises is noted in `unfit`.

    Raises:
        SuiteError: A model fails preflight, or two models cannot be distinguished.
    """

    def load(entry: ModelEntry) -> LoadedModel:
        return live_models.prepare_live_model(entry, models[entry.label], data, device)

    return _load_evaluator(suite, data, device, load, batch_size, use_acceleration)


def from_tensors(
    model: nn.Module | Callable[[Tensor], Any],
    x: Any,
    y: Any,
    device: torch.device,
    *,
    source: nn.Module | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    use_acceleration: bool = True,
    predictions: int = 1,
    access: Access = "gradient",
    classes: int | None = None,
    allow: Sequence[str] = (),
    output: str | int | None = None,
    detector: Detector | Mapping[str, Any] | None = None,
) -> Evaluator:
    """Build the evaluator of one model, or of a model and a source, on given images.

    Args:
        model: Maps images to logits; its label is the name of its class.
        x: Images, or any other form that `bench.datasets.as_data` lists.
        y: Integer labels (n,); None where `x` has them.
        device: Where models and images are placed.
        source: Model that the examples are crafted on; it comes second in `models`.
        seed: Seed of every draw.
        batch_size: Rows per pass; by the memory of one row unless given.
        use_acceleration: Whether attacks may use accelerated models.
        predictions: Times that `model` is asked for one prediction.
        access: What the attacker sees of `model`.
        classes: Classes of a model that shows labels alone; as many as y needs unless given.
        allow: Names of preflight findings that do not stop the evaluation.
        output: Which part of `model`'s output is the logits, as in a model's entry.
        detector: How `model` rejects images, likewise.

    Returns:
        The evaluator, whose suite has no name.

    Raises:
        SuiteError: Images or labels are invalid, or a model fails preflight.
    """
    data = as_data(x, y)
    if data.labels is None:
        raise SuiteError(f"data {data.name}: expected labels, got images alone; give labels")
    entry = live_models.make_entry(
        model,
        predictions=predictions,
        access=access,
        allow=[*allow],
        output=output,
        detector=detector,
    )
    label = entry.label
    with enter_device(device):
        models = {label: live_models.prepare_live_model(entry, model, data, device, classes)}
        if source is not None:
            own = "source" if label != "source" else "the source"
            crafting = live_models.make_entry(source, own, allow=[*allow])
            models[own] = live_models.prepare_live_model(crafting, source, data, device)
        rows = {
            name: choose_rows(loaded, data, device, batch_size) for name, loaded in models.items()
        }
    return Evaluator(
        suite="",
        seed=seed,
        device=device,
        data=data,
        models=models,
        rows=rows,
        fixed_rows=batch_size is not None,
        use_acceleration=use_acceleration,
        one_attack=True,
    )


def _load_evaluator(
    suite: Suite,
    data: Data,
    device: torch.device,
    load: Callable[[ModelEntry], LoadedModel],
    batch_size: int | None,
    use_acceleration: bool,
    keep_all_images: bool = False,
) -> Evaluator:
    """Load every model of a suite by a function of its entry."""
    with enter_device(device):
        loaded = load_suite_models(suite, data, device, batch_size, load)
        check_adaptations(suite.attacks, loaded.models, data, device)
    return Evaluator(
        suite=suite.name,
        seed=suite.seed,
        device=device,
        data=data,
        models=loaded.models,
        rows=loaded.rows,
        fixed_rows=batch_size is not None,
        use_acceleration=use_acceleration,
        keep_all_images=keep_all_images,
        unfit=loaded.unfit,
        notes=loaded.notes,
    )
