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
    """Interval bounds on the logits of one model, with the schedule of a `Certificate`."""

    def __init__(self, certificate: Certificate, model: nn.Module, shape: tuple[int, ...]) -> None:
        """Read the layers of the model.

        Args:
            certificate: Radius and schedule.
            model: Network to be bounded.
            shape: Shape of one image, (c, h, w).

        Raises:
            SuiteError: The model has batch normalisation, or a layer without bounds.
        """
        self.certificate = certificate
        batch_norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        if any(isinstance(module, batch_norms) for module in model.modules()):
            raise SuiteError("certified: expected a model without batch-norm, which is never fixed")
        try:
            self.layers = network.read_network(model, shape)
        except network.UnreadableError as error:
            raise SuiteError(f"certified: the model has no bounds: {error.problems[0]}") from error

    def progress(self, done: float) -> tuple[float, float]:
        """Compute eps and the share of the clean loss at a point of the training.

        During the warm-up, eps is 0 and the share is 1; afterwards both change linearly to their
        final values.

        Args:
            done: Epochs done, with the fraction of the current one.

        Returns:
            eps and the share of the clean loss.
        """
        certificate = self.certificate
        grown = (done - certificate.warmup) / certificate.ramp if certificate.ramp else 1.0
        grown = min(max(grown, 0.0), 1.0) if done >= certificate.warmup else 0.0
        return certificate.eps * grown, 1 - (1 - certificate.share) * grown

    def worst(self, x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Bound the logits in the ball: lowest for the label, highest for every other class.

        Args:
            x: Images, (n, c, h, w) in [0, 1].
            y: Labels, (n,).
            eps: L-inf radius, in the unit of x.

        Returns:
            Logits minus the label's, (n, classes), with the label moved to the front; and the
            labels' new indices, zeros of shape (n,).
        """
        margins = bounds.margin_bounds(self.layers, bounds.input_region(x, eps), y, "ibp")
        logits = torch.cat([margins.new_zeros(len(margins), 1), -margins], dim=1)
        return logits, torch.zeros_like(y)


@torch.no_grad()
def certify_images(certificate: Certificate, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Certify images at the radius `certificate.judged`, as `bench certify` does.

    Computed in float64, with a margin for the rounding of float32.

    Args:
        certificate: Radius.
        model: Network in evaluation mode.
        x: Images, (n, c, h, w) in [0, 1].
        y: Labels, (n,).

    Returns:
        Whether each image is proven to be classified as its label in the whole ball, (n,) bool.
    """
    layers = network.read_network_in_double(model, x[:1])
    margins = [
        bounds.certified_margins(
            layers, bounds.input_region(part.double(), certificate.judged), label, "ibp"
        )
        for part, label in zip(x.split(ROWS), y.split(ROWS), strict=True)
    ]
    return torch.cat(margins) > 0
