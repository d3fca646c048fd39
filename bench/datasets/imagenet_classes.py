"""Names of the classes of ImageNet."""


def load_imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 class names in index order, from torchvision's weights metadata."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
