"""Pure functions of tensors: norms, projections, sampling, losses, gradients, logits."""
