"""Certified training: the loss at the worst logits that interval bounds allow in a ball.

Source: Gowal et al. 2018, section 3, https://arxiv.org/abs/1810.12715
"""

import torch
from torch import Tensor, nn

from bench.core.errors import SuiteError
from bench.evaluation.certification import bounds, network
from bench.workflows.training.recipe import Certificate

ROWS = 250
"""Images certified at once."""


class CertifiedLoss:
    """Bounds one model's logits as a `Certificate` says."""

    def __init__(self, certificate: Certificate, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Images have this shape. Raises: SuiteError for a model that has no bounds."""
        self.certificate = certificate
        batched = (nn.BatchNorm1d, nn.BatchNorm2d)
        if any(isinstance(module, batched) for module in model.modules()):
            raise SuiteError("certified: expected a model without batch-norm, which is never fixed")
        try:
            self.layers = network.read_network(model, shape)
        except network.UnreadableError as error:
            raise SuiteError(f"certified: the model has no bounds: {error.problems[0]}") from error

    def progress(self, done: float) -> tuple[float, float]:
        """(eps, share of the clean loss) after `done` epochs, a whole number or not.

        While warming up, eps is 0 and the loss is the clean one; then both go in a straight line
        to what the recipe says."""
        certificate = self.certificate
        grown = (done - certificate.warmup) / certificate.ramp if certificate.ramp else 1.0
        grown = min(max(grown, 0.0), 1.0) if done >= certificate.warmup else 0.0
        return certificate.eps * grown, 1 - (1 - certificate.share) * grown

    def worst(self, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Logits as low for the label and as high for every other class as intervals allow, less
        the label's, (n, classes), with the label moved to the front; and the place of the label."""
        margins = bounds.margin_bounds(self.layers, bounds.input_region(x, eps), y, "ibp")
        logits = torch.cat([margins.new_zeros(len(margins), 1), -margins], dim=1)
        return logits, torch.zeros_like(y)


@torch.no_grad()
def certified(certificate: Certificate, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which of x are proven to be classified as y everywhere within the radius that the recipe
    judges by, (n,): as `certify` claims it, in float64 and with room for float32."""
    layers = network.read_network_in_double(model, x[:1])
    found = [
        bounds.certified_margins(
            layers, bounds.input_region(part.double(), certificate.judged), label, "ibp"
        )
        for part, label in zip(x.split(ROWS), y.split(ROWS), strict=True)
    ]
    return torch.cat(found) > 0
