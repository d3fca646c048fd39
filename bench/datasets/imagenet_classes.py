"""Provide the names and ids of ImageNet's classes."""

from pathlib import Path


def load_imagenet_names() -> tuple[str, ...]:
    """Load the class names from the metadata of torchvision's weights.

    Returns:
        1000 names in index order.
    """
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def load_imagenet_wnids() -> list[str]:
    """Load the ids of the classes, which are sorted.

    Returns:
        1000 ids such as "n01440764" in index order.
    """
    return Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split()
