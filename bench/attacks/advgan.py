"""AdvGAN: a generator that learned to fool one model; attacking is one forward pass of it.

x_adv = clip(x + delta, 0, 1), delta = eps * tanh(g(x)). Against a fixed model z the generator g
descends L_adv + alpha * L_GAN + beta * L_hinge (equation 4), in turn with a discriminator d that
learns to tell x from x_adv:
    L_adv = max(z_y - max_{i != y} z_i, -kappa)    the untargeted form of equation 2
    L_GAN = (d(x_adv) - 1)^2                       equation 1 in its least-squares form
    L_hinge = max(0, |delta|_2 - c)                equation 3
and d descends (d(x) - 1)^2 + d(x_adv)^2. `bench train` runs this; the attack reads what came of it.
Source: Xiao et al. 2018, https://arxiv.org/abs/1801.02610, architectures as there for MNIST.
Differs from the paper: untargeted alone, for a target would need a generator of its own;
tanh bounds delta, which at another eps than the trained one is scaled;
kappa is 5 by default, not 0, as a generator that stops at the boundary of the images it learns
from falls short of it on others; the discriminator's last convolution has no instance norm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from safetensors import safe_open
from torch import Tensor, nn

from bench.attacks.trained_weights import find_weights, load_weights
from bench.core import checkpoint, checkpoint_states
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.learner import Learner, Losses, TrainingBatch
from bench.core.contracts.types import Norm, Shape, Threat
from bench.core.errors import ContractError, SuiteError
from bench.core.rng import Noise
from bench.engine.functional.losses import logit_difference


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    weights: str = "lenet-mnist"
    """The generator: one published with bench, called by the model and data that it was trained
    against, or a path ending in .safetensors."""


# --------------------------------------------------------------------------------------- networks


class Residual(nn.Module):
    """x + f(x): two convolutions with instance norm, at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(
            _block(nn.Conv2d(width, width, 3, padding=1)),
            _block(nn.Conv2d(width, width, 3, padding=1), nn.Identity()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features, (n, width, h, w).

        Returns:
            Features, as `x`.
        """
        return x + self.f(x)  # type: ignore[no-any-return]


def _block(layer: nn.Conv2d | nn.ConvTranspose2d, then: nn.Module | None = None) -> nn.Module:
    """Append an instance norm, which is independent of the batch, and an activation to a layer."""
    return nn.Sequential(layer, nn.InstanceNorm2d(layer.out_channels), then or nn.ReLU())


def _doubling(wide: int, narrow: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution that doubles the sides."""
    return nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1)


def generator(shape: Shape) -> nn.Module:
    """Build g without its tanh; 4.6 million multiplications for an image of 28x28.

    The comments at each line give the shape for such an image, without the batch axis.

    Args:
        shape: Channels, height and width of an image.

    Returns:
        Network that maps images to images of the same shape.
    """
    channels = shape[0]
    return nn.Sequential(
        _block(nn.Conv2d(channels, 8, 3, padding=1)),  # (8, 28, 28)
        _block(nn.Conv2d(8, 16, 3, stride=2, padding=1)),  # (16, 14, 14)
        _block(nn.Conv2d(16, 32, 3, stride=2, padding=1)),  # (32, 7, 7)
        *(Residual(32) for _ in range(4)),
        _block(_doubling(32, 16)),  # (16, 14, 14)
        _block(_doubling(16, 8)),  # (8, 28, 28)
        nn.Conv2d(8, channels, 3, padding=1),
    )


def discriminator(shape: Shape) -> nn.Module:
    """Build d, which gives one number for each image.

    Args:
        shape: Channels, height and width of an image.

    Returns:
        Network that maps images to (n, 1).
    """
    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        _block(nn.Conv2d(8, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(32 * (height // 8) * (width // 8), 1),
    )


# --------------------------------------------------------------------------------------- learning


@dataclass(frozen=True, kw_only=True)
class Training:
    """Parameters of the training."""

    alpha: Annotated[float, Ge(0)] = 1.0
    """Weight of L_GAN."""
    beta: Annotated[float, Ge(0)] = 1.0
    """Weight of L_hinge."""
    c: Annotated[float, Ge(0)] = 5.0
    """Length of delta, in l2, that costs nothing."""
    kappa: Annotated[float, Ge(0)] = 5.0
    """Lead of another class over the label, in logits, beyond which nothing is gained."""


def build(shape: Shape, params: Training) -> Mapping[str, nn.Module]:
    """Build the untrained networks.

    Args:
        shape: Channels, height and width of an image.
        params: Parameters of the training.

    Returns:
        Generator and discriminator by name.

    Raises:
        SuiteError: The images' sides are no multiples of 4 of at least 8.
    """
    _, height, width = shape
    if height % 4 or width % 4 or min(height, width) < 8:
        raise SuiteError(
            "attack 'advgan': expected images whose sides are multiples of 4 and at least 8, "
            f"got {height}x{width}"
        )
    return {"generator": generator(shape), "discriminator": discriminator(shape)}


def step(
    networks: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    batch: TrainingBatch,
    params: Training,
) -> Losses:
    """Make one step of the discriminator, then one of the generator, on the same images.

    Args:
        networks: Generator and discriminator by name.
        optimisers: Their optimisers.
        batch: Model to fool, images, labels and threat.
        params: Parameters of the training.

    Returns:
        Terms of the losses.
    """
    g, d = networks["generator"], networks["discriminator"]
    delta = batch.threat.eps * torch.tanh(g(batch.x))
    x_adv = (batch.x + delta).clamp(0, 1)

    judging = {
        "clean": (d(batch.x) - 1).square().mean(),
        "adversarial": d(x_adv.detach()).square().mean(),
    }
    _descend(optimisers["discriminator"], judging["clean"] + judging["adversarial"], d)

    lead = -logit_difference(batch.target(x_adv), batch.y)
    fooling = {
        "adversarial": lead.clamp(min=-params.kappa).mean(),
        "GAN": (d(x_adv) - 1).square().mean(),
        "hinge": (delta.flatten(1).norm(dim=1) - params.c).clamp(min=0).mean(),
    }
    whole = fooling["adversarial"] + params.alpha * fooling["GAN"] + params.beta * fooling["hinge"]
    _descend(optimisers["generator"], whole, g)
    both = {"generator": fooling, "discriminator": judging}
    return {name: {k: v.detach() for k, v in parts.items()} for name, parts in both.items()}


def _descend(optimiser: torch.optim.Optimizer, loss: Tensor, network: nn.Module) -> None:
    """Make a step of one network; the gradient reaches no other, through which the loss may run."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=list(network.parameters()))
    optimiser.step()


def metadata(shape: Shape, threat: Threat) -> Mapping[str, str]:
    """Return the metadata of a weights file.

    Args:
        shape: Channels, height and width of an image.
        threat: Norm, radius and goal.

    Returns:
        Radius and shape that the generator was trained for.
    """
    return {"eps": repr(threat.eps), "shape": "x".join(map(str, shape))}


# -------------------------------------------------------------------------------------- attacking


class LoadedGenerator(NamedTuple):
    """Content of a weights file."""

    network: nn.Module
    shape: Shape
    eps: float
    """Radius that it was trained at."""


def craft(network: nn.Module, x: Tensor, threat: Threat) -> Tensor:
    """Craft adversarial images: one forward pass of the generator.

    Args:
        network: The generator.
        x: Clean images, (n, c, h, w), in [0, 1].
        threat: Norm, radius and goal.

    Returns:
        Images, (n, c, h, w), in [0, 1].
    """
    with torch.no_grad():
        return (x + threat.eps * torch.tanh(network(x))).clamp(0, 1)


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> Tensor:
    """Craft adversarial images from x alone.

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
        ContractError: The generator is for images of another shape.
    """
    learned = load_generator(params)
    if x.shape[1:] != learned.shape:
        raise ContractError(
            f"advgan: weights '{params.weights}' are for images {learned.shape}, "
            f"got {tuple(x.shape[1:])}"
        )
    return craft(learned.network.to(x.device), x, threat)


def load_generator(params: Params) -> LoadedGenerator:
    """Read the generator that the params name, once for each content of the file.

    Args:
        params: Params of the attack.

    Returns:
        The generator in evaluation mode.

    Raises:
        SuiteError: The file is missing, damaged or of another network.
    """
    return load_weights("advgan", params.weights, _read)


@lru_cache(maxsize=8)
def _read(where: str, path: Path, changed: int) -> LoadedGenerator:
    """Read a weights file."""
    state = checkpoint.read_tensors(where, path)
    with safe_open(path, framework="pt") as file:
        metadata: Mapping[str, str] = file.metadata() or {}
    try:
        channels, height, width = map(int, metadata["shape"].split("x"))
        eps = float(metadata["eps"])
    except (KeyError, ValueError) as error:
        raise SuiteError(f"{where}: {path} does not tell the eps and shape it is for") from error
    shape = (channels, height, width)
    network = generator(shape)
    checkpoint_states.load_tensors(f"{where} in {path}", network, state)
    return LoadedGenerator(network.eval().requires_grad_(False), shape, eps)


def reads(params: Params) -> Sequence[Path]:
    """Return the weights file, after a check of its content.

    Args:
        params: Params of the attack.

    Returns:
        The path.

    Raises:
        SuiteError: The file is missing, damaged or of another network.
    """
    load_generator(params)  # reports a bad file now, and not cell by cell
    return [find_weights("advgan", params.weights)]


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    """Return the caveat if the generator was trained at another radius.

    Args:
        params: Params of the attack.
        norm: Norm of the ball.
        eps: Radius of the ball.

    Returns:
        Sentences for the report.
    """
    if not find_weights(
        "advgan", params.weights
    ).is_file():  # a suite can be planned before the generator is trained
        return ()
    learned = load_generator(params)
    if learned.eps == eps:
        return ()
    return (f"The generator was trained at eps = {learned.eps:g}; here its output is scaled.",)


ATTACK = ExternalAttack(
    summary="a generator trained against one model: one forward pass, no query",
    source="Xiao et al. 2018",
    params=Params,
    norms=("linf",),
    goals=("untargeted",),
    needs="nothing",
    channels=(1,),
    reads=reads,
    run=run,
    learn=Learner(
        params=Training,
        build=build,
        step=step,
        published="generator",
        craft=craft,
        metadata=metadata,
    ),
    caveats=caveats,
)
