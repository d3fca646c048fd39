"""Load the models of a suite, each under its label, and choose how many rows each passes."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from bench.core import streams
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.engine.float32_precision import allow_tf32
from bench.evaluation import loading
from bench.models import fingerprint
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.suite import targets
from bench.suite.schema import ModelEntry, Suite


class SuiteModels(NamedTuple):
    """The models of a suite, each under its label."""

    models: dict[str, LoadedModel]
    rows: dict[str, int]
    """Rows per pass by the memory of one row, or as the user set them; 0 for an unfit model."""
    unfit: dict[str, str]
    """Why models could not be loaded, of those that could not."""
    notes: list[str]
    """What the models printed, a sentence each."""


def load_suite_models(
    suite: Suite,
    data: Data,
    device: torch.device,
    batch_size: int | None,
    load: Callable[[ModelEntry], LoadedModel],
) -> SuiteModels:
    """Load the models of a suite.

    Args:
        suite: The checked suite.
        data: Its data.
        device: Where the models are placed.
        batch_size: Rows per pass; by the memory of one row unless given.
        load: Loads and checks the model of an entry.

    Returns:
        All models; one whose code raises is noted in `unfit`.

    Raises:
        SuiteError: Weights or a target are missing or invalid, a model fails preflight, or two
            models cannot be distinguished.
    """
    loaded_models = SuiteModels({}, {}, {}, [])
    models, rows, unfit, notes = loaded_models
    for entry in suite.models:
        label = entry.label
        try:
            with streams.protect_streams(notes.append, f"model '{label}'"):
                loaded = load(entry)
                rows[label] = choose_rows(loaded, data, device, batch_size)
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # of the user's model, which may raise anything
            reason = loading.describe_failure(error)
            unfit[label], rows[label] = f"could not be made ready: {reason}", 0
            models[label] = checks.refuse_model(label, reason)
            continue
        models[label] = loaded
        for attack in suite.attacks:
            if attack.goal == "targeted":
                targets.resolve_target(attack, loaded.classes, data.classes)
    _check_distinguishable(models)
    return loaded_models


@allow_tf32(False)
def choose_rows(
    loaded: LoadedModel, data: Data, device: torch.device, batch_size: int | None
) -> int:
    """Choose the rows per pass of a model.

    Args:
        loaded: The model.
        data: Its data.
        device: Where it is placed.
        batch_size: As the user set it, if so.

    Returns:
        `batch_size`, or as many rows as the memory of one row allows.
    """
    sample = data.read(0, 1).to(device)
    return batch_size or timing.rows_per_pass(loaded.model, sample)


def _check_distinguishable(models: Mapping[str, LoadedModel]) -> None:
    """Raise SuiteError if two models have one fingerprint and different answers.

    Records of one could otherwise be taken for those of the other.
    """
    for (label, one), (other, two) in itertools.combinations(models.items(), 2):
        answers = [(one.logits, two.logits), (one.scores, two.scores)]
        if one.fingerprint == two.fingerprint and any(
            first is not None and second is not None and fingerprint.logits_differ(first, second)
            for first, second in answers
        ):
            raise SuiteError(
                f"models '{label}' and '{other}': expected one's answers from what is one model as "
                "far as bench can see, got others on the first images; let what sets them "
                "apart be among their params, or an attribute of theirs"
            )
