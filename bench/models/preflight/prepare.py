"""Make a model as users write it map images to logits, then check it.

A model that maps images to logits is checked as it is. Where it raises or returns something else,
the reason is looked for once: the precision, the number of images, the channels, the output. What
was done is a finding; what cannot be done is an error that says what to do.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.detector import Detector
from bench.core.errors import SuiteError
from bench.engine.float32_precision import allow_tf32
from bench.engine.model_state import InputCloningModel, eval_mode
from bench.engine.opaque_model import OpaqueModel
from bench.engine.rejection import ClassifierView, RejectingModel
from bench.models import fingerprint
from bench.models.outputs import (
    BINARY,
    SIGMOID,
    BinaryModel,
    Output,
    Place,
    ScoredOutput,
    SelectedOutput,
    find_output,
    find_score,
    take_output,
)
from bench.models.preflight.checks import (
    N_IMAGES,
    LoadedModel,
    ModelCallError,
    ModelOutputError,
    identify_model,
    preflight,
)
from bench.models.preflight.detector_checks import check_score
from bench.models.preflight.findings import Finding
from bench.models.preflight.logit_checks import find_half_logits
from bench.models.preflight.recall import recall_loaded, store_loaded
from bench.models.query_only import QueryOnlyModel
from bench.models.wrapping import CastingModel, FixedBatchModel, unwrap_model

SIZES = (1, 2, 4, 8, 10, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512)
"""Numbers of images that are tried with a model that refuses N_IMAGES."""
MAX_SECONDS = 10.0
"""Time after which no further number of images is tried."""


@allow_tf32(False)  # as in the judge: what is found must not depend on the process's setting
def prepare_model(
    label: str,
    model: nn.Module,
    data: Data,
    device: torch.device,
    *,
    output: Output | None = None,
    batch_size: int | None = None,
    predictions: int = 1,
    allow: Sequence[str] = (),
    about: Any = None,
    detector: Detector | None = None,
) -> LoadedModel:
    """Convert a model where needed and check it on the first images.

    Args:
        label: Label of the model.
        model: The model, on `device`.
        data: The data set.
        device: Device of the checks.
        output: Which part of its output is the logits, or how one score an image is read; None:
            it returns logits, or one part of its output may be nothing else.
        batch_size: The only number of images that it takes; None: any, or found where it refuses.
        predictions: Predictions that vote on one verdict.
        allow: Names of findings that do not stop the run.
        about: Plain values that belong to the model's fingerprint.
        detector: How the model rejects images; None if it does not.

    Returns:
        The model with its fingerprint and findings; converted if it has to be. Its classifier is
        what is checked; with a detector, the model has one more class, of rejected images.

    Raises:
        SuiteError: As `preflight`, or nothing tells how the model is to be called.
    """
    where, notes = f"model '{label}'", list[Finding]()
    prepared: nn.Module = unwrap_model(model)
    if isinstance(prepared, torch.jit.ScriptModule):  # which no module may wrap and hook
        prepared = OpaqueModel(prepared, fingerprint.describe_program(prepared))
    x = data.read(0, min(data.n, N_IMAGES)).to(device)
    query = isinstance(prepared, QueryOnlyModel)  # whose callable has selected its scores itself
    selected = query or (output is None and detector is None)
    if detector is not None:
        about = [about, dataclasses.asdict(detector)]
    net, digest = prepared, identify_model(prepared, about)
    settings = (label, output, batch_size, predictions, tuple(allow), detector)
    key = (*settings, data.name, data.fingerprint, data.n, tuple(data.classes or ()), str(device))
    if not query and (known := recall_loaded(net, digest, key, x)) is not None:
        return known
    if batch_size is not None:
        chosen = None if query else output
        prepared = _fix_batch(where, prepared, x, batch_size, chosen, notes, detector)
        selected = True
    for _ in range(4):
        if not selected and (answer := _try_call(prepared, x)) is not None:
            prepared = _select_output(where, prepared, answer, output, notes, len(x), detector)
            selected = True
        classifier = prepared if detector is None else ClassifierView(prepared)
        try:
            own = digest if classifier is net else ""
            loaded = preflight(label, classifier, data, device, predictions, allow, about, own)
        except ModelCallError as error:
            prepared = _convert_input(
                where, prepared, x, data, output, allow, error, notes, detector
            )
            selected = selected or isinstance(prepared, FixedBatchModel)
        except ModelOutputError as error:
            if query or output is not None or detector is not None:
                raise
            prepared = _select_output(where, prepared, error.answer, None, notes, len(x))
        else:
            break
    if output == BINARY:
        notes += _find_binary_probabilities(where, loaded)
    if detector is not None:
        loaded = _add_detector(where, loaded, detector, x, notes)
    for each in notes:
        if each.refuses and each.name not in allow:
            raise SuiteError(each.format_error())
    noted = [each.format_note(each.refuses) for each in notes]
    findings = (*noted, *loaded.findings)
    loaded = loaded._replace(findings=findings)
    if not query:
        store_loaded(loaded, net, digest, key)
    return loaded


def _add_detector(
    where: str, loaded: LoadedModel, detector: Detector, x: Tensor, notes: list[Finding]
) -> LoadedModel:
    """Replace the classifier that was checked by the model that rejects; check its score."""
    clones = isinstance(loaded.model, InputCloningModel)
    view = loaded.model.net if isinstance(loaded.model, InputCloningModel) else loaded.model
    assert isinstance(view, ClassifierView)
    model = RejectingModel(
        InputCloningModel(view.net) if clones else view.net,
        loaded.classes,
        threshold=detector.threshold,
        above=detector.rejects == "above",
        spares=detector.rejected == "robust",
    )
    seen = check_score(where, model, x)
    notes += seen.findings
    random = loaded.random or seen.random
    return loaded._replace(
        model=model,
        detector=detector,
        random=random,
        logits=None if random else loaded.logits,
        scores=None if random else seen.scores.detach().cpu(),
        sketch="" if random else f"{loaded.sketch} {fingerprint.sketch_scores(seen.scores)}",
    )


def _find_binary_probabilities(where: str, loaded: LoadedModel) -> Iterator[Finding]:
    """Yield a finding if scores that are read as logits are probably probabilities."""
    if loaded.logits is None or loaded.access == "labels":  # no scores that repeat, or none at all
        return
    scores = loaded.logits[:, 1]
    if bool(((scores >= 0) & (scores <= 1)).all()):
        yield Finding(
            "binary-probabilities",
            f"{where} returns scores from {float(scores.min()):.3g} to {float(scores.max()):.3g} "
            f"on {len(scores)} clean images, which are read as logits, so that no answer is class "
            f"0 unless its score is 0: if they are probabilities of class 1, say output = "
            f'"{SIGMOID}"; better, return the values before the sigmoid.',
        )


def _select_output(
    where: str,
    model: nn.Module,
    answer: Any,
    output: Output | None,
    notes: list[Finding],
    n: int,
    detector: Detector | None = None,
) -> nn.Module:
    """Wrap a model so that it returns logits alone, by its answer to n images.

    With a detector, the score follows the logits.
    """
    score = None if detector is None else find_score(where, answer, n, detector.output)
    place = find_output(where, answer, n, output)
    if score is not None:
        assert isinstance(place, Place)  # since the answer is no tensor
        types = [take_output(answer, part).dtype for part in (place, score)]
        half = find_half_logits(where, types[0])
        if half is not None and types[1] != types[0]:  # else preflight sees it
            notes.append(half)
        return ScoredOutput(model, place, score)
    if not isinstance(place, Place):
        return BinaryModel(model, place)
    if output is None:
        sentence = f"{where} returns more than logits: {place.describe()} of its output is used"
        notes.append(Finding("output", f"{sentence}; say so by `output` in its entry."))
    return SelectedOutput(model, place)


def _fix_batch(
    where: str,
    model: nn.Module,
    x: Tensor,
    size: int,
    output: Output | None,
    notes: list[Finding],
    detector: Detector | None,
) -> nn.Module:
    """Wrap a model that takes one number of images alone; its logits are selected before."""
    answer = _try_call(model, _repeat(x, size))
    several = output is not None or detector is not None or not isinstance(answer, Tensor)
    if answer is not None and several:
        model = _select_output(where, model, answer, output, notes, size, detector)
    return FixedBatchModel(model, size)


def _repeat(x: Tensor, size: int) -> Tensor:
    """Repeat images to a number of them."""
    return x.repeat(-(-size // len(x)), 1, 1, 1)[:size]


def _convert_input(
    where: str,
    model: nn.Module,
    x: Tensor,
    data: Data,
    output: Output | None,
    allow: Sequence[str],
    error: ModelCallError,
    notes: list[Finding],
    detector: Detector | None,
) -> nn.Module:
    """Wrap a model that raised on the first images; raise the reason if no wrapper helps."""
    kind = _find_precision(model)
    if kind is not None and not isinstance(model, CastingModel):
        if "not-float32" not in allow:
            raise error
        name = str(kind).removeprefix("torch.")
        sentence = f"{where} computes in {name}: images are converted to it, attacks included."
        notes.append(Finding("not-float32", sentence))
        return CastingModel(model, kind)
    if isinstance(model, QueryOnlyModel | FixedBatchModel):
        raise error
    if wrong := _describe_channels(where, model, x, data):
        raise SuiteError(wrong) from error
    size = _find_batch_size(model, x)
    if size is None:
        raise error
    sentence = (
        f"{where} takes {size} images at once and no other number: batches are filled up with "
        "copies of their last image, which changes no answer; let it take any number."
    )
    notes.append(Finding("fixed-batch", sentence))
    return _fix_batch(where, model, x, size, output, notes, detector)


def _find_precision(model: nn.Module) -> torch.dtype | None:
    """Return the precision of a model's parameters if it is the same for all and not float32."""
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 and torch.float32 not in kinds else None


def _find_batch_size(model: nn.Module, x: Tensor) -> int | None:
    """Return the only number of images that a model takes; None if there are none or several."""
    began, found = time.monotonic(), list[int]()
    for size in SIZES:
        if _try_call(model, _repeat(x, size)) is not None:
            found.append(size)
        if len(found) > 1 or time.monotonic() - began > MAX_SECONDS:
            break
    return found[0] if len(found) == 1 else None


def _describe_channels(where: str, model: nn.Module, x: Tensor, data: Data) -> str:
    """Describe that the images have other channels than the model takes; empty if they have not."""
    given, wanted = x.shape[1], _find_channels(model, x)
    if wanted in (None, given):
        return ""
    names = {1: "grey images (1 channel)", 3: "colour images (3 channels)"}
    sentence = (
        f"{where} takes {names.get(wanted or 0, f'images of {wanted} channels')}, and data "
        f"{data.name} has {names.get(given, f'images of {given} channels')}"
    )
    if given == 1:
        change = f"repeat the channel (x.expand(-1, {wanted}, -1, -1)) in the model's first layer"
    elif wanted == 1:
        change = (
            "take the mean of the channels (x.mean(1, keepdim=True)) in the model's first layer"
        )
    else:
        change = "select the channels in the model's first layer"
    return f"{sentence}; {change}, or choose other data"


def _find_channels(model: nn.Module, x: Tensor) -> int | None:
    """Find the number of channels that a model takes: by its first convolution, or by trying."""
    convolutions = (each for each in model.modules() if isinstance(each, nn.Conv2d))
    first = next(convolutions, None)
    if first is not None:
        return first.in_channels
    for channels, changed in _change_channels(x):
        if _try_call(model, changed) is not None:
            return channels
    return None


def _change_channels(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield grey images in three equal channels, colour images in grey."""
    if x.shape[1] == 1:
        yield 3, x.expand(-1, 3, -1, -1)
    elif x.shape[1] == 3:
        yield 1, x.mean(1, keepdim=True)


def _try_call(model: nn.Module, x: Tensor) -> Any:
    """Return a model's answer to a copy of images; None if it raises."""
    try:
        with eval_mode(model), torch.no_grad(), rng.seed_global("preflight"):
            return model(x.clone())
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code may raise anything
        return None
