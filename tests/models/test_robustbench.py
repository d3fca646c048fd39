"""Models of RobustBench by name, on a small package of its shape: files, figures, refusals."""

import base64
import hashlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.core import registry
from bench.core.contracts.model import Model
from bench.core.errors import SuiteError
from bench.datasets.in_memory import make_data
from bench.evaluation import loading
from bench.suite.reader import parse_suite
from bench.suite.schema import ModelEntry

NAME = "robustbench:Small2020Net"
UTILS = """
from pathlib import Path
import torch
from robustbench.model_zoo import Dataset, Threat, model_dicts

def load_model(name, model_dir, dataset, threat_model):
    net = model_dicts[Dataset(dataset)][Threat(threat_model)][name]["model"]()
    path = Path(model_dir) / dataset / threat_model / f"{name}.pt"
    if not path.is_file():
        raise OSError("Cannot retrieve the public link of the file.")
    net.load_state_dict(torch.load(path, weights_only=False))
    return net.eval()
"""
ZOO = """
import enum
from torch import nn

class Dataset(enum.Enum):
    cifar_10 = "cifar10"
    imagenet = "imagenet"

class Threat(enum.Enum):
    Linf = "Linf"
    L2 = "L2"

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))

small = {"Small2020Net": {"model": net, "gdrive_id": "1a2B"}}
model_dicts = {
    Dataset.cifar_10: {Threat.Linf: small, Threat.L2: {"Other2021": small["Small2020Net"]}},
    Dataset.imagenet: {Threat.Linf: {}},
}
"""
PUBLISHED = {"eps": "0.031", "clean_acc": "83.34", "autoattack_acc": "43.21", "external": "43.10"}
SUITE = f"""
schema = 1
name = "robust"

[data]
name = "digits"

[[models]]
name = "{NAME}"
label = "small"

[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0, "8/255"]

[[attacks]]
name = "autoattack"
norm = "linf"
eps = ["4/255", "8/255"]
"""


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "robustbench"]:
        del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages with RobustBench in it; the working folder and the data are empty."""
    site = tmp_path / "site"
    files = {"__init__.py": "", "utils.py": UTILS, "model_zoo.py": ZOO}
    (site / "robustbench").mkdir(parents=True)
    for name, text in files.items():
        (site / "robustbench" / name).write_text(text, encoding="utf-8")
    about = site / "robustbench-1.1.1.dist-info"
    about.mkdir()
    about.joinpath("METADATA").write_text("Name: robustbench\nVersion: 1.1.1\n", encoding="utf-8")
    digest = base64.urlsafe_b64encode(hashlib.sha256(UTILS.encode()).digest()).rstrip(b"=")
    record = f"robustbench/utils.py,sha256={digest.decode()},{len(UTILS)}\n"
    about.joinpath("RECORD").write_text(record, encoding="utf-8")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.syspath_prepend(site)
    forget()
    yield site
    forget()


def weights(folder: Path) -> Path:
    """Write the model's file, in which every bias is 7, and return its path."""
    path = folder / "cifar10" / "Linf" / "Small2020Net.pt"
    path.parent.mkdir(parents=True)
    state = {"1.weight": torch.zeros(3, 12), "1.bias": torch.tensor([7.0, 7.0, 7.0])}
    torch.save(state, path)
    return path


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(SuiteError) as caught:
        make()
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


@pytest.mark.parametrize("folder", ["models", "../data/robustbench", "elsewhere"])
def test_a_file_that_is_there_is_read_without_network(site: Path, folder: str) -> None:
    weights(Path(folder))
    params = {"model_dir": folder} if folder == "elsewhere" else {}
    model = registry.find("models", NAME).build(**params)
    assert model[1].bias.tolist() == [7.0, 7.0, 7.0]


def test_an_entry_of_a_suite_needs_no_weights(site: Path) -> None:
    weights(Path("models"))
    data = make_data("noise", torch.rand(3, 3, 2, 2), torch.arange(3), ())
    entry = ModelEntry(name=NAME, label="small", allow=["ties", "flat", "zero-gradient"])
    found = loading.load_model(entry, Path(), 0, data, torch.device("cpu"))
    assert found.classes == 3
    assert loading.find_default_weights(NAME) is None


def test_an_absent_file_is_named_with_its_address_and_place(site: Path) -> None:
    told = refusal(registry.find("models", NAME).build)
    place = Path("../data/robustbench/cifar10/Linf/Small2020Net.pt").resolve()
    assert "weights are absent and downloads are off, BENCH_OFFLINE is set; put " in told
    assert told.endswith(f"https://drive.google.com/uc?id=1a2B at {place}")


def test_a_failed_download_is_named_with_the_same(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_OFFLINE")
    told = refusal(registry.find("models", NAME).build)
    assert (
        "could not be loaded (OSError: Cannot retrieve the public link of the file.); put" in told
    )
    assert "https://drive.google.com/uc?id=1a2B at " in told


def test_a_downloaded_page_is_recognised(site: Path) -> None:
    path = weights(Path("models"))
    path.write_text("<html><title>Quota exceeded</title></html>", encoding="utf-8")
    told = refusal(registry.find("models", NAME).build)
    assert 'Small2020Net.pt is a web page ("Quota exceeded")' in told
    assert told.endswith("delete it and get the file from https://drive.google.com/uc?id=1a2B")


def test_code_in_a_downloaded_pickle_does_not_run(site: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return Path.write_text, (Path("ran"), "ran")  # type: ignore[return-value]

    torch.save({"1.bias": Evil()}, weights(Path("models")))
    assert "could not be loaded" in refusal(registry.find("models", NAME).build)
    assert not Path("ran").exists()


def test_unknown_names_and_params_lead_to_what_is_meant(site: Path) -> None:
    told = refusal(lambda: registry.find("models", "robustbench:Small2020Nett"))
    assert "did you mean 'Small2020Net'" in told
    build = registry.find("models", NAME).build
    assert "dataset 'cifar11' is unknown; did you mean 'cifar10'" in refusal(
        lambda: build(dataset="cifar11")
    )
    assert "threat_model 'linf' is unknown; did you mean 'Linf'" in refusal(
        lambda: build(threat_model="linf")
    )
    assert refusal(lambda: build(dataset="imagenet")) == (
        f"model '{NAME}': expected dataset and threat_model cifar10, Linf, got imagenet, Linf"
    )


def test_the_copy_of_torchattacks_is_told_apart(site: Path) -> None:
    import shutil

    shutil.rmtree(site / "robustbench-1.1.1.dist-info")
    told = refusal(lambda: registry.find("models", NAME))
    assert f"{site / 'robustbench'} is an incomplete copy that torchattacks brings" in told
    assert told.endswith(": pip install git+https://github.com/RobustBench/robustbench")


def test_a_package_that_was_overwritten_is_told_apart(site: Path) -> None:
    (site / "robustbench" / "utils.py").write_text(UTILS + "\n", encoding="utf-8")
    told = refusal(lambda: registry.find("models", NAME))
    assert "library 'robustbench' 1.1.1 was overwritten by another package" in told


def test_a_module_that_it_lacks_is_named_with_its_source(site: Path) -> None:
    (site / "robustbench" / "model_zoo.py").write_text("import autoattack", encoding="utf-8")
    for _ in range(2):
        told = refusal(lambda: registry.find("models", NAME))
        assert "could not be imported (No module named 'autoattack')" in told
        assert told.endswith("pip install git+https://github.com/fra31/auto-attack")


@pytest.mark.parametrize("place", ["site", "data/robustbench"])
def test_published_figures_are_laid_beside_the_attacks_that_measure_them(
    site: Path, place: str
) -> None:
    folder = site.parent / place / "model_info" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Small2020Net.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    figures = parse_suite(SUITE, "s.toml", Path()).published
    eight = 8 / 255
    found: list[Any] = [(each.attack, each.figure, each.eps, each.values) for each in figures]
    assert found == [
        ("fgsm", "clean_accuracy", (0.0,), (pytest.approx(0.8334),)),
        ("autoattack", "robust_accuracy", (eight,), (pytest.approx(0.4321),)),
        ("autoattack", "robust_accuracy", (eight,), (pytest.approx(0.4310),)),
    ]
    assert len({each.source for each in figures}) == 3


@pytest.mark.parametrize("about", [{}, {**PUBLISHED, "eps": None}, {"eps": "8/255"}])
def test_a_model_without_published_figures_has_none(site: Path, about: dict[str, str]) -> None:
    folder = site / "model_info" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Small2020Net.json").write_text(json.dumps(about), encoding="utf-8")
    assert parse_suite(SUITE, "s.toml", Path()).published == ()


def test_the_entry_of_the_readme_has_params_that_a_model_takes(site: Path) -> None:
    readme = (Path(bench.__file__).parent / "models" / "README.md").read_text(encoding="utf-8")
    block = next(
        each
        for each in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
        if "robustbench:" in each
    )
    (entry,) = tomllib.loads(block)["models"]
    weights(Path("models"))
    assert registry.find("models", NAME).build(**entry["params"])[1].bias[0] == 7.0


def test_a_users_record_may_bring_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from bench import Model\nfrom torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
        "MODEL = Model(summary='s', source='s', build=build, shape=(3, 2, 2), classes=3)\n",
        encoding="utf-8",
    )
    assert isinstance(registry.find("models", "mine.py:MODEL", tmp_path), Model)
    data = make_data("noise", torch.rand(3, 3, 2, 2), torch.arange(3), ())
    entry = ModelEntry(name="mine.py:MODEL", label="mine")
    assert loading.load_model(entry, tmp_path, 0, data, torch.device("cpu")).classes == 3
