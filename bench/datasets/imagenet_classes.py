"""Provide the names of ImageNet's classes."""


def load_imagenet_names() -> tuple[str, ...]:
    """Load the class names from the metadata of torchvision's weights.

    Returns:
        1000 names in index order.
    """
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
