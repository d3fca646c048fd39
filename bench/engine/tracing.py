"""Trace a model into a graph of torch.fx."""

from torch import fx, nn


def trace_forward(model: nn.Module) -> fx.GraphModule | None:
    """The model's forward as a graph over its own layers; None where it cannot be followed."""
    try:
        return fx.symbolic_trace(model)
    except KeyboardInterrupt:
        raise
    except BaseException:  # a stranger's forward: it may branch, print, or refuse
        return None
