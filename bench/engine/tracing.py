"""Trace a model into a graph of torch.fx."""

from torch import fx, nn


def trace_forward(model: nn.Module) -> fx.GraphModule | None:
    """Trace a model's forward into a torch.fx graph over its own layers.

    Args:
        model: The model.

    Returns:
        The graph module; None if the forward cannot be traced.
    """
    try:
        return fx.symbolic_trace(model)
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code: a forward may branch, print or raise
        return None
