"""Part: PGD on a large network, led by each precision that the device has, judged in float32."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Precision
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.evaluation.crafting import Examples, craft
from bench.evaluation.judge import judge
from bench.evaluation.verify import craft_and_verify, is_success, predict_output
from bench.workflows.gpu_check.passes import LARGE_NET, list_precisions
from bench.workflows.gpu_check.setup import Job, Setup, build_net, make_spec

EPS, STEPS = 2 / 255, 10
ROUNDS = 2
"""Timed runs after one that warms up; the fastest counts."""


def list_jobs(setup: Setup) -> Iterator[Job]:
    """List the attack by the precision that leads it, float32 first.

    Args:
        setup: Device, images and sizes.

    Yields:
        Jobs; none for TF32 where the device has none.
    """
    leading = Leading(*_make_inputs(setup))
    for precision in list_precisions(setup.device):
        yield Job(f"led by {precision}", partial(leading.run, precision))


def _make_inputs(setup: Setup) -> tuple[nn.Module, Examples]:
    """Make a network with random weights, and images whose labels are its clean predictions."""
    n, side = setup.sizes.large[-1], setup.sizes.side
    net = build_net(LARGE_NET, setup.device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, side, side, generator=generator).to(setup.device)
    clean, ids = judge(net, x, n), torch.arange(n, device=setup.device)
    fields = (ids, x, clean.pred, ids - ids - 1, clean.pred, clean.confidence, clean.agreement)
    return net, Examples(*fields)


class Leading:
    """One attack on one network, by the precision of its gradients."""

    def __init__(self, net: nn.Module, examples: Examples) -> None:
        """Take network and images.

        Args:
            net: In evaluation mode, its parameters frozen.
            examples: Images that it classifies as their labels; all are one batch.
        """
        self.net, self.examples = net, examples
        self.robust: dict[Precision, Tensor] = {}
        """Precision -> whether each image is robust against the attack that it led, (n,)."""

    def run(self, precision: Precision) -> dict[str, Any]:
        """Attack with gradients of one precision; the network in float32 judges.

        Args:
            precision: Arithmetic of the gradients.

        Returns:
            `attack_seconds`, with the judge's; of so many `images`, those that the leading
            precision `claimed` to have fooled, those that the judge saw alike (`judged_alike`),
            and those that are `robust` after the unconfirmed ones were attacked again in float32;
            `as_float32`: images with the verdict of the attack that float32 led.
        """
        settings = {"steps": STEPS, "alpha": EPS / 4}
        rows, device = len(self.examples.id), self.examples.x.device
        spec = make_spec("pgd", "linf", (EPS,), params=settings, precision=precision)
        fast = accelerate.accelerate_model(
            self.net, self.examples.x[:16], rows, precision, fixed=True
        ).model

        def attack() -> Any:
            return craft_and_verify(self.net, spec, self.examples, rows, accelerated=fast)

        claims = craft(self.net, spec, self.examples, rows, fast)  # warms up
        (seen,) = predict_output(self.net, spec, self.examples, claims, rows)
        claimed, confirmed = claims.first_success[0] >= 0, is_success(spec, self.examples, seen)
        runs = [timing.time_call(attack, device) for _ in range(ROUNDS)]
        robust = ~is_success(spec, self.examples, runs[0][0].predictions[0])
        self.robust[precision] = robust
        found = {
            "attack_seconds": min(seconds for _, seconds in runs),
            "images": rows,
            "claimed": int(claimed.sum()),
            "judged_alike": int((claimed == confirmed).sum()),
            "robust": int(robust.sum()),
        }
        if "float32" in self.robust:
            found["as_float32"] = int((robust == self.robust["float32"]).sum())
        return found
