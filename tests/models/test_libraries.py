"""Models of libraries by their names there: their own nets behind their own normalisation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.core import optional, registry
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets.in_memory import make_data
from bench.evaluation import loading
from bench.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from bench.suite.schema import ModelEntry

CPU = torch.device("cpu")
VISION, TIMM = "torchvision:squeezenet1_1", "timm:test_resnet.r160_in1k"
LIBRARIES = {"timm": "timm", "huggingface": "transformers"}


def needs(adapter: str) -> None:
    if reason := optional.missing_reason(LIBRARIES[adapter], adapter):
        pytest.skip(reason)


def noise(channels: int = 3, size: int = 64) -> Data:
    x = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))
    return make_data("noise", x, torch.arange(4), ())


def load(data: Data, name: str, base: Path = Path(), seed: int = 0, **keys: Any) -> Any:
    entry = ModelEntry(**{"name": name, "label": "net", "weights": "random", **keys})
    return loading.load_model(entry, base, seed, data, CPU)


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(SuiteError) as caught:
        make()
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No downloads, and caches in a folder that is empty."""
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


# ------------------------------------------------------------------------------------- torchvision


def test_a_classifier_of_torchvision_is_its_own_net_behind_its_own_normalisation() -> None:
    result = registry.find("models", VISION)
    assert (result.shape, result.classes) == ((3, 224, 224), 1000)
    assert sorted(result.published_names) == ["DEFAULT", "IMAGENET1K_V1"]
    assert result.names()[0] == "tench"
    model = result.build(classes=7).eval()
    x = noise().read(0, 2)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(model(x), model.net((x - mean) / std))
    assert model(x).shape == (2, 7)


def test_random_weights_come_from_the_seed_and_another_size_is_reported() -> None:
    before = torch.get_rng_state()
    one, again, other = (load(noise(), VISION, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(before, torch.get_rng_state())
    assert [text for text in one.findings if "made for images (3, 224, 224)" in text]
    assert [text for text in one.findings if text.endswith("(input-size)")]


def test_a_file_of_the_suites_holds_the_librarys_own_state(tmp_path: Path) -> None:
    state = registry.find("models", VISION).build().net.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    loaded = load(noise(), VISION, tmp_path, weights="w.safetensors")
    assert torch.equal(loaded.model.net.classifier[1].bias, state["classifier.1.bias"])


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_weights_of_torchvision_that_are_not_here_are_reported_with_file_and_folder(
    offline: Path, weights: str
) -> None:
    sentence = refused(lambda: load(noise(), VISION, weights=weights))
    assert "downloads are off, BENCH_OFFLINE is set" in sentence
    assert f"put torchvision's file squeezenet1_1-b8a52dc0.pth into {offline}" in sentence


def test_an_unknown_name_or_no_weights_are_reported_with_what_there_is() -> None:
    sentence = refused(lambda: registry.find("models", "torchvision:resnett18"))
    assert "did you mean 'resnet18'" in sentence
    sentence = refused(lambda: load(noise(), VISION, weights=None))
    assert "expected weights; known: DEFAULT, IMAGENET1K_V1, 'random', or a" in sentence


# -------------------------------------------------------------------------------------------- timm


def test_a_classifier_of_timm_normalises_as_its_weights_want() -> None:
    needs("timm")
    result = registry.find("models", TIMM)
    assert (result.shape, result.classes) == ((3, 160, 160), 1000)
    model = result.build(classes=5).eval()
    x = noise().read(0, 2)
    assert torch.allclose(model(x), model.net((x - 0.5) / 0.5))
    assert model(x).shape == (2, 5)
    grey = result.build(channels=1).eval()
    assert grey(noise(1).read(0, 2)).shape == (2, 1000)


def test_random_weights_of_timm_come_from_the_seed() -> None:
    needs("timm")
    one, again, other = (load(noise(), TIMM, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_file_holds_timms_own_state(tmp_path: Path) -> None:
    needs("timm")
    state = registry.find("models", TIMM).build().net.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    loaded = load(noise(), TIMM, tmp_path, weights="w.safetensors")
    assert torch.equal(loaded.model.net.fc.bias, state["fc.bias"])


def test_names_and_tags_that_timm_does_not_know_are_reported() -> None:
    needs("timm")
    assert "did you mean" in refused(lambda: registry.find("models", "timm:resnett18"))
    sentence = refused(lambda: registry.find("models", "timm:resnet18.a9_in1k"))
    assert "has no weights 'a9_in1k'; did you mean 'a3_in1k'" in sentence


def test_weights_of_timm_that_are_not_here_are_reported(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("timm")
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(offline))
    sentence = refused(lambda: load(noise(), TIMM, weights="DEFAULT"))
    assert "fetch model.safetensors of timm/test_resnet.r160_in1k into the hub's cache" in sentence


# ------------------------------------------------------------------------------------ Hugging Face


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT for images (3, 16, 16), as transformers saves one."""
    needs("huggingface")
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, num_labels=4, id2label=dict(enumerate("abcd")),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.ViTForImageClassification(config)
    net.save_pretrained(tmp_path / "vit")
    said = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(said), encoding="utf-8")
    return tmp_path / "vit"


def test_a_folder_that_transformers_saved_is_a_model_with_its_weights(folder: Path) -> None:
    import transformers

    own = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    loaded = load(noise(size=16), f"huggingface:{folder}", weights="DEFAULT")
    x = noise(size=16).read(0, 4)
    assert torch.allclose(loaded.model(x), own((x - 0.5) / 0.25).logits, atol=1e-5)
    assert (loaded.classes, loaded.findings) == (4, ())
    assert registry.find("models", f"huggingface:{folder}").names() == ("a", "b", "c", "d")


def test_random_weights_of_a_folder_come_from_the_seed_and_classes_may_be_others(
    folder: Path,
) -> None:
    name = f"huggingface:{folder}"
    one, again, other = (load(noise(size=16), name, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert load(noise(size=16), name, params={"classes": 6}).classes == 6


def test_pickled_weights_and_code_of_a_repository_are_refused(folder: Path) -> None:
    name = f"huggingface:{folder}"
    (folder / "model.safetensors").rename(folder / "kept")
    torch.save({}, folder / "pytorch_model.bin")
    sentence = refused(lambda: load(noise(size=16), name, weights="DEFAULT"))
    assert f"put its config.json and model.safetensors into {folder}" in sentence
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert "could not be had" in refused(lambda: load(noise(size=16), name))


def test_a_repository_that_is_not_here_is_reported(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("huggingface")
    hub = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(offline))
    sentence = refused(lambda: load(noise(), "huggingface:nobody/nothing", weights="DEFAULT"))
    assert "model 'huggingface:nobody/nothing' could not be had" in sentence
    assert "put its config.json into the hub's cache (HF_HOME), or name a folder" in sentence


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, lambda x: x),
        ({"do_normalize": False}, lambda x: x),
        ({"image_mean": [0.5] * 3, "image_std": [0.2] * 3}, lambda x: (x - 0.5) / 0.2),
        ({"do_normalize": False, "do_rescale": False}, lambda x: 255 * x),
        ({"image_mean": [127.5] * 3, "image_std": [127.5] * 3, "do_rescale": False},
         lambda x: (255 * x - 127.5) / 127.5),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 127.5},
         lambda x: (2 * x - 0.5) / 0.5),
    ],
)  # fmt: skip
def test_what_an_image_processor_does_to_pixels_is_one_mean_and_one_deviation(
    said: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    from bench.models.adapters.huggingface import read_moments

    mean, std = (torch.tensor(each)[:, None, None] for each in read_moments(said, 3))
    x = noise().read(0, 2)
    assert torch.allclose((x - mean) / std, expected(x), atol=1e-4)


# ---------------------------------------------------------------------------- without the library


@pytest.mark.parametrize("name", ["timm:resnet18", "huggingface:owner/name"])
def test_a_library_that_is_not_installed_is_reported_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, library = name.partition(":")[0], LIBRARIES[name.partition(":")[0]]

    def absent(module: str) -> None:
        raise ModuleNotFoundError(module, name=library)

    monkeypatch.setattr(optional, "import_library", absent)
    sentence = refused(lambda: registry.find("models", name))
    assert f"library '{library}' is not installed" in sentence
    assert f'pip install "robustness-bench[{adapter}]"' in sentence
