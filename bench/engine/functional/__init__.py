"""Pure functions of tensors: norms, projections, hyperplanes, sampling, losses, gradients, logits.

Read `norms` first, then `projections` (`hyperplane` within the box) and `gradients`, which applies
`losses`, `logits` and `input_transforms`; `sampling` draws random points of balls.
"""
