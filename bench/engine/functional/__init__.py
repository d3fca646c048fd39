"""Pure functions of tensors: norms, projections, losses, gradients, logits, hyperplanes."""
