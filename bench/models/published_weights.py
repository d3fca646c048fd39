"""The folder of shipped weights, one file MODEL-NAME.safetensors for each."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def list_weights(folder: Path, model: str) -> list[str]:
    """List the names of a model's weights in a folder.

    Args:
        folder: Where files MODEL-NAME.safetensors are; need not exist.
        model: The registered name of the model.

    Returns:
        Each NAME, unordered.
    """
    stems = [path.stem for path in folder.glob("*.safetensors")]
    return [stem.removeprefix(f"{model}-") for stem in stems if stem.startswith(f"{model}-")]
