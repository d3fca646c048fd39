"""Universal perturbation: one delta for all images, trained beforehand on other images.

x_adv = clip(x + delta, 0, 1), |delta| <= eps. `bench train` maximises the mean over training images
of min(cross-entropy, limit) by the recipe's optimiser and projects delta onto the ball after each
step; it reads the training split alone, so no judged image of the test split was trained on. The
attack asks the model nothing. At another eps than the trained one delta is scaled, and in another
norm it is scaled to the length eps.
Source: Shafahi et al. 2020, algorithm 2, https://arxiv.org/abs/1811.11304; the problem is that of
Moosavi-Dezfooli et al. 2017, https://arxiv.org/abs/1610.08401
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple, cast, get_args

import torch
from annotated_types import Gt
from safetensors import safe_open
from torch import Tensor, nn

from bench.attacks.trained_weights import find_weights, load_weights
from bench.core import checkpoint
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.learner import Learner, Losses, TrainingBatch
from bench.core.contracts.threat import VerifierInput
from bench.core.contracts.types import Norm, Shape, Threat
from bench.core.errors import ContractError, SuiteError
from bench.core.rng import Noise
from bench.engine.functional.losses import cross_entropy
from bench.engine.functional.norms import norm_of


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    weights: str = "lenet-digits"
    """The perturbation: one published with bench, called by the model and data that it was trained
    against, or a path ending in .safetensors."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Parameters of the training."""

    limit: Annotated[float, Gt(0)] = 9.0
    """Cross-entropy of an image beyond which nothing is gained, so that no few images dominate."""


class Perturbation(nn.Module):
    """The perturbation as a network without input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the perturbation of each image.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            The same delta for each, (n, c, h, w).
        """
        return self.delta.expand(len(x), *self.delta.shape)


# --------------------------------------------------------------------------------------- training


def build(shape: Shape, params: Training) -> Mapping[str, nn.Module]:
    """Build the untrained perturbation, which is 0.

    Args:
        shape: Channels, height and width of an image.
        params: Not read.

    Returns:
        The perturbation by name.
    """
    return {"perturbation": Perturbation(shape)}


def step(
    networks: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    batch: TrainingBatch,
    params: Training,
) -> Losses:
    """Make one step of the optimiser and project delta onto the ball.

    Args:
        networks: The perturbation.
        optimisers: Its optimiser.
        batch: Model to fool, images, labels and threat.
        params: Parameters of the training.

    Returns:
        The mean of the bounded cross-entropy, which is ascended.
    """
    network = cast(Perturbation, networks["perturbation"])
    logits = batch.target((batch.x + network(batch.x)).clamp(0, 1))
    gain = cross_entropy(logits, batch.y).clamp(max=params.limit).mean()
    optimiser = optimisers["perturbation"]
    optimiser.zero_grad(set_to_none=True)
    (-gain).backward(inputs=[network.delta])
    optimiser.step()
    with torch.no_grad():
        network.delta.copy_(_project(network.delta, batch.threat))
    return {"perturbation": {"bounded cross-entropy": gain.detach()}}


def _project(delta: Tensor, threat: Threat) -> Tensor:
    """Project a perturbation (c, h, w) onto the ball around 0."""
    if threat.norm == "linf":
        return delta.clamp(-threat.eps, threat.eps)
    length = norm_of(delta[None], threat.norm)[0]
    return delta * (threat.eps / length.clamp(min=threat.eps))


def metadata(shape: Shape, threat: Threat) -> Mapping[str, str]:
    """Return the metadata of a weights file.

    Args:
        shape: Channels, height and width of an image.
        threat: Norm, radius and goal.

    Returns:
        Norm and radius that delta was trained for.
    """
    return {"norm": threat.norm, "eps": repr(threat.eps), "shape": "x".join(map(str, shape))}


# -------------------------------------------------------------------------------------- attacking


class LoadedPerturbation(NamedTuple):
    """Content of a weights file."""

    delta: Tensor
    """(c, h, w)."""
    norm: str
    eps: float
    """Radius that it was trained at."""


def craft(network: nn.Module, x: Tensor, threat: Threat) -> Tensor:
    """Add the perturbation.

    Args:
        network: The perturbation, trained at the radius of `threat`.
        x: Clean images, (n, c, h, w), in [0, 1].
        threat: Not read.

    Returns:
        Images, (n, c, h, w), in [0, 1].
    """
    with torch.no_grad():
        delta: Tensor = network(x)
        return (x + delta).clamp(0, 1)


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> Tensor:
    """Add the perturbation, scaled to the radius.

    Args:
        model: Not called.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Not read.
        threat: Norm, radius and goal.
        params: Params of the attack.
        noise: Not used.

    Returns:
        Images, (n, c, h, w).

    Raises:
        ContractError: The perturbation is for images of another shape.
    """
    learned = load_perturbation(params)
    if x.shape[1:] != learned.delta.shape:
        raise ContractError(
            f"universal: weights '{params.weights}' are for images {tuple(learned.delta.shape)}, "
            f"got {tuple(x.shape[1:])}"
        )
    return _add(x, learned, threat.norm, threat.eps)


def _add(x: Tensor, learned: LoadedPerturbation, norm: Norm, eps: float) -> Tensor:
    length = learned.eps
    if norm != learned.norm:
        length = float(norm_of(learned.delta[None], norm)[0].clamp(min=torch.finfo().tiny))
    return (x + learned.delta.to(x) * (eps / length)).clamp(0, 1)


def verify(given: VerifierInput) -> list[str]:
    """Check that every image is the clean one plus the one perturbation, cut off to [0, 1].

    Args:
        given: Images, radius and params.

    Returns:
        For each image the violation; "" if there is none.
    """
    learned = load_perturbation(given.params)
    expected = _add(given.x, learned, given.norm, given.level)
    changed = (given.x_adv != expected).flatten(1).sum(1).tolist()
    text = "{} pixel values differ from the universal perturbation's, allowed 0"
    return [text.format(count) if count else "" for count in changed]


def load_perturbation(params: Params) -> LoadedPerturbation:
    """Read the perturbation that the params name, once for each content of the file.

    Args:
        params: Params of the attack.

    Returns:
        The perturbation.

    Raises:
        SuiteError: The file is missing, damaged or of another attack.
    """
    return load_weights("universal", params.weights, _read)


@lru_cache(maxsize=8)
def _read(where: str, path: Path, changed: int) -> LoadedPerturbation:
    """Read a weights file."""
    state = checkpoint.read_tensors(where, path)
    with safe_open(path, framework="pt") as file:
        about: Mapping[str, str] = file.metadata() or {}
    try:
        delta, norm, eps = state["delta"], about["norm"], float(about["eps"])
    except (KeyError, ValueError) as error:
        raise SuiteError(f"{where}: {path} does not state delta, norm and eps") from error
    if norm not in get_args(Norm) or not eps > 0 or delta.ndim != 3 or not delta.isfinite().all():
        raise SuiteError(f"{where}: {path}: expected a finite delta (c, h, w) of a norm and an eps")
    return LoadedPerturbation(delta.float(), norm, eps)


def reads(params: Params) -> Sequence[Path]:
    """Return the weights file, after a check of its content.

    Args:
        params: Params of the attack.

    Returns:
        The path.

    Raises:
        SuiteError: The file is missing, damaged or of another attack.
    """
    load_perturbation(params)  # reports a bad file now, and not cell by cell
    return [find_weights("universal", params.weights)]


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    """Return the caveat if the perturbation was trained at another radius.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Sentences for the report.
    """
    if not find_weights(
        "universal", params.weights
    ).is_file():  # a suite can be planned before the perturbation is trained
        return ()
    learned = load_perturbation(params)
    if (learned.norm, learned.eps) == (norm, eps):
        return ()
    trained = f"{learned.norm} eps = {learned.eps:g}"
    return (f"The perturbation was trained at {trained}; here it is scaled.",)


ATTACK = ExternalAttack(
    summary="one perturbation for all images, trained on other images against one model; no query",
    source="Shafahi et al. 2020",
    params=Params,
    norms=("linf", "l2"),
    goals=("untargeted",),
    needs="nothing",
    reads=reads,
    run=run,
    verify=verify,
    learn=Learner(
        params=Training,
        build=build,
        step=step,
        published="perturbation",
        craft=craft,
        metadata=metadata,
    ),
    caveats=caveats,
)
