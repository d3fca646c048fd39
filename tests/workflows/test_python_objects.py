"""What a notebook holds: arrays, loaders, functions, attack objects, and models of MAITE."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bench
from bench.attacks import fgsm
from bench.cli import cli
from bench.storage.fingerprint import records_hash
from bench.suite.attack_inputs import list_radii

Digits = tuple[Tensor, Tensor]


@pytest.fixture
def few(digits: Digits) -> Digits:
    return digits[0][:8], digits[1][:8]


def darken(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Subtract eps from every pixel."""
    return (x - eps).clamp(0, 1)


def hash_records(model: nn.Module, *data: Any, **settings: Any) -> str:
    return records_hash(bench.evaluate(model, *data, attack="fgsm", **settings).records)


@pytest.mark.parametrize(
    "eps",
    [np.float32(0.1), np.array(0.1), torch.tensor(0.1), Fraction(1, 10), "0.1", np.array([0.1])],
)
def test_eps_is_any_number(eps: Any) -> None:
    assert [float(Fraction(radius)) for radius in list_radii(eps)] == [pytest.approx(0.1, abs=0)]


@pytest.mark.parametrize("eps", [None, True, b"8/255", [0.1, object()]])
def test_what_is_no_number_is_refused(eps: Any) -> None:
    with pytest.raises(bench.SuiteError, match="expected numbers or fractions such as '8/255'"):
        list_radii(eps)


def test_all_forms_of_the_same_images_have_the_same_records(
    few: Digits, lenet: nn.Module, tmp_path: Path
) -> None:
    x, y = few
    np.savez(tmp_path / "few.npz", images=x.numpy(), labels=y.numpy())
    wanted = hash_records(lenet, x, y)
    assert hash_records(lenet, x.numpy(), y.numpy()) == wanted
    assert hash_records(lenet, (x, y.numpy()), eps=np.float32(0.1)) == wanted
    assert hash_records(lenet, TensorDataset(x, y)) == wanted
    assert hash_records(lenet, DataLoader(TensorDataset(x, y), batch_size=3)) == wanted
    assert hash_records(lenet, str(tmp_path / "few.npz")) == wanted
    assert hash_records(lenet, x, y, eps=0.2) != wanted


def test_a_function_is_an_attack_whose_images_are_verified(few: Digits, lenet: nn.Module) -> None:
    found = bench.evaluate(lenet, *few, attack=darken, eps=[0.1], keep_adversarial=True)
    assert found.table["violations"].tolist() == [0]
    attacked = torch.from_numpy(found.records["attacked"].to_numpy().copy())
    torch.testing.assert_close(found.adversarial[0][attacked], (few[0] - 0.1).clamp(0, 1)[attacked])


def test_an_attack_record_is_the_attack_of_its_name(few: Digits, lenet: nn.Module) -> None:
    by_record = bench.evaluate(lenet, *few, attack=fgsm.ATTACK)
    by_name = bench.evaluate(lenet, *few, attack="fgsm")
    assert by_record.records.equals(by_name.records)


def test_a_torchattacks_object_is_used_as_it_is(few: Digits, lenet: nn.Module) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    attack = torchattacks.PGD(lenet, eps=0.1, alpha=0.03, steps=4)
    found = bench.evaluate(lenet, *few, attack=attack)
    params = {"alpha": 0.03, "steps": 4}
    named = bench.evaluate(lenet, *few, attack="torchattacks:PGD", params=params, eps=0.1)
    assert found.records["adv_pred"].tolist() == named.records["adv_pred"].tolist()
    assert found.table["implementation"].tolist() == ["torchattacks"]
    with pytest.raises(bench.SuiteError, match=r"was made with, 0\.1, got 0\.2"):
        bench.evaluate(lenet, *few, attack=attack, eps=0.2)
    with pytest.raises(bench.SuiteError, match="made for the model evaluated"):
        bench.evaluate(nn.Flatten(), *few, attack=attack)


def test_a_foolbox_object_is_used_as_it_is(few: Digits, lenet: nn.Module) -> None:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    attack = foolbox.attacks.LinfPGD(steps=4)
    found = bench.evaluate(lenet, *few, attack=attack, eps=[0.1]).table
    assert found[["implementation", "norm", "violations"]].values.tolist() == [
        ["foolbox", "linf", 0]
    ]


@pytest.mark.parametrize("attack", [3, nn.Flatten(), dict])
def test_what_is_no_attack_is_refused(attack: Any, few: Digits, lenet: nn.Module) -> None:
    with pytest.raises(bench.SuiteError, match="attack: expected a name of `bench list attacks`"):
        bench.evaluate(lenet, *few, attack=attack)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"access": "none"}, "access: expected 'gradient', 'scores' or 'labels', got 'none'"),
        ({"allow": "near-chance"}, "allow: expected a valid list, got 'near-chance'"),
        ({"audit": "yes"}, "audit: expected a valid boolean, got 'yes'"),
        ({"backward": darken}, "backward: expected a valid dictionary, got"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a valid integer, got 2.5"),
        ({"budgets": 10}, "budgets: expected a valid list, got 10"),
        ({"copied": "no"}, "copied: expected a valid boolean, got 'no'"),
        ({"features": "0"}, "features: expected a valid list, got '0'"),
        ({"params": [3]}, "params: expected a valid dictionary, got [3]"),
        ({"seed": "a"}, "seed: expected a valid integer, got 'a'"),
        ({"source": "lenet"}, "source: expected a torch.nn.Module or a list of several, got str"),
        ({"source": []}, "source: expected at least one model, got an empty list"),
        ({"source": [darken]}, "source[0]: expected a torch.nn.Module, got function"),
        ({"transforms": "DI"}, "transforms: expected a valid dictionary, got 'DI'"),
    ],
)
def test_an_argument_of_another_type_is_one_sentence(
    settings: dict[str, Any], said: str, few: Digits, lenet: nn.Module
) -> None:
    with pytest.raises(bench.SuiteError, match=re.escape(f"bench.evaluate: {said}")):
        bench.evaluate(lenet, *few, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"access": "none"}, "access: expected 'gradient', 'scores' or 'labels', got 'none'"),
        ({"copied": "no"}, "copied: expected a valid boolean, got 'no'"),
        ({"limit": 2.5}, "limit: expected a valid integer, got 2.5"),
        ({"seed": "a"}, "seed: expected a valid integer, got 'a'"),
    ],
)
def test_a_benchmark_refuses_the_same_arguments(
    settings: dict[str, Any], said: str, few: Digits, lenet: nn.Module
) -> None:
    with pytest.raises(bench.SuiteError, match=re.escape(f"bench.benchmark: {said}")):
        bench.benchmark(lenet, few, attacks=["fgsm"], **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"copied": "no"}, "copied: expected a valid boolean, got 'no'"),
        ({"keep_adversarial": 1000}, "keep_adversarial: expected a valid string, got 1000"),
        ({"limit": "a"}, "limit: expected a valid integer, got 'a'"),
        ({"shard": (1, 2)}, "shard: expected a valid string, got (1, 2)"),
    ],
)
def test_a_run_refuses_them_before_it_writes_anything(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(bench.SuiteError, match=re.escape(f"bench.run: {said}")):
        bench.run("quickstart", tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_runs_folder_is_called_one(
    few: Digits, lenet: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(bench.SuiteError, match=r"notes\.txt: expected a folder, got a file"):
        bench.benchmark(lenet, few, attacks=["fgsm"], out=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_benchmark_of_a_list_of_models_asks_for_their_labels(
    few: Digits, lenet: nn.Module
) -> None:
    with pytest.raises(bench.SuiteError, match="models: expected label -> model, or one model"):
        bench.benchmark([lenet], few, attacks=["fgsm"])


def test_numbers_of_numpy_and_torch_mean_those_of_python(few: Digits, lenet: nn.Module) -> None:
    plain = bench.evaluate(
        lenet, *few, attack="pgd", params={"steps": 2, "alpha": 0.05}, seed=3, batch_size=4,
        goal="targeted", target=1,
    )  # fmt: skip
    numbers = {"steps": torch.tensor(2), "alpha": np.float32(0.05)}
    found = bench.evaluate(
        lenet, *few, attack="pgd", params=numbers, seed=np.int64(3), batch_size=np.uint8(4),
        goal="targeted", target=torch.tensor(1),
    )  # fmt: skip
    assert found.records.equals(plain.records)  # the identity of the cell included


def test_a_notebook_gets_table_curves_figure_and_report(
    few: Digits, lenet: nn.Module, tmp_path: Path
) -> None:
    found = bench.benchmark(
        {"my net": lenet}, few, attacks=["fgsm", darken], eps=[0.05, 0.1], out=tmp_path / "run"
    )
    assert found.table["status"].tolist() == ["ok"] * 4
    assert len(found.records) == 4 * 8
    alone = bench.evaluate(lenet, *few, attack="fgsm", eps=[0.05, 0.1]).table
    curve = found.curves[found.curves["attack"] == "fgsm"]
    assert curve["robust_accuracy"].tolist() == alone["robust_accuracy"].tolist()
    assert found.plot().axes
    page = found.report(tmp_path / "page.html")
    assert "my net" in page.read_text(encoding="utf-8")
    again = bench.benchmark(
        {"my net": lenet}, few, attacks=["fgsm", darken], eps=[0.05, 0.1], out=tmp_path / "run"
    )
    assert again.results.provenance["sessions"][-1]["parts"] == 0


class Scores:
    """A model of MAITE, without gradients."""

    metadata = {"id": "scores"}

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, batch: Any) -> Any:
        with torch.no_grad():
            return [*self.model(torch.stack([torch.as_tensor(image) for image in batch])).numpy()]


class OneHot:
    """A data set of MAITE."""

    metadata = {"id": "digits", "index2label": {index: str(index) for index in range(10)}}

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index], {"id": index}


def test_a_notebook_asks_for_threat_models_together(
    few: Digits, lenet: nn.Module, tmp_path: Path
) -> None:
    attacks = {"linf": {"name": "fgsm"}, "l2": {"name": "fgsm", "norm": "l2", "eps": [0.5, 1]}}
    given: dict[str, Any] = {"attacks": attacks, "norm": "linf", "eps": 0.05}
    given["out"] = tmp_path / "run"
    small = {"small": {"linf": np.float32(0.05), "l2": 0.5}}
    run = bench.benchmark(lenet, *few, unions=small, **given)
    assert run.unions["label"].tolist() == ["all threat models", "small"]
    assert run.unions["threats"].tolist() == ["linf 0.05, l2 1", "linf 0.05, l2 0.5"]
    records = run.records[run.records["eps"] <= 0.5]
    broken = set(records.loc[records["fooled"] | ~records["clean_correct"], "example"])
    assert run.unions["robust_correct"].iloc[1] == len(few[1]) - len(broken)
    assert run.classes.groupby(["attack", "eps"])["n"].sum().eq(len(few[1])).all()
    with pytest.raises(bench.SuiteError, match=r"unions\[0\].threats\[1\].eps: expected an attack"):
        bench.benchmark(lenet, *few, unions={"small": {"linf": 0.05, "l2": 0.1}}, **given)
    with pytest.raises(bench.SuiteError, match="unions: expected label -> norm -> radius, got"):
        bench.benchmark(lenet, *few, unions=["small"], **given)  # type: ignore[arg-type]


def test_a_data_set_of_maite_is_that_of_its_images_and_classes(
    few: Digits, lenet: nn.Module
) -> None:
    assert hash_records(lenet, OneHot(*few)) == hash_records(lenet, *few)


def test_a_model_of_maite_is_attacked_by_its_scores(few: Digits, lenet: nn.Module) -> None:
    pytest.importorskip("maite", reason="maite is not installed")
    model = Scores(lenet)
    found = bench.evaluate(model, *few, attack="noise")
    assert found.table["clean_accuracy"].tolist() == [1.0]
    assert any("shows no gradients" in sentence for sentence in found.findings)
    with pytest.raises(bench.SuiteError, match="gradient"):
        bench.evaluate(model, *few, attack="pgd")


def test_an_object_that_only_has_metadata_is_no_model_of_maite(few: Digits) -> None:
    model: Callable[..., Any] = SimpleNamespace(metadata={})  # type: ignore[assignment]
    with pytest.raises(bench.SuiteError, match=r"expected a torch\.nn\.Module"):
        bench.evaluate(model, *few)


class lenet(nn.Module):  # noqa: N801  the name of a registered model
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Named(lenet):
    """The same function under a name that is not registered."""


def test_a_class_with_the_name_of_a_registered_model_is_not_that_model(
    few: Digits, tmp_path: Path
) -> None:
    model, twin = lenet(), Named()
    twin.load_state_dict(model.state_dict())
    found = bench.benchmark({"net": model}, few, attacks="fgsm", eps=0.1, out=tmp_path / "run")
    alone = bench.benchmark({"net": twin}, few, attacks="fgsm", eps=0.1)
    assert records_hash(found.records) == records_hash(alone.records)
    about = found.results.provenance
    assert about["published"] == []
    assert about["models"]["net"]["logits"] == alone.results.provenance["models"]["net"]["logits"]
    assert 'name = "lenet"' not in about["suite"]["text"]
    name = Path(__file__).relative_to(Path.cwd()).as_posix()
    assert name in about["files"]  # the user's code, as for every class of the user's
    again = CliRunner().invoke(cli, ["rerun", str(tmp_path / "run")])
    assert again.exit_code == 2
    assert "call bench.benchmark again with these objects" in again.output


class Opaque:
    """Shows nothing of what makes it answer."""

    def __init__(self, model: nn.Module) -> None:
        self.answer = memoryview(b"")
        hidden[id(self)] = model

    def __call__(self, x: Tensor) -> Tensor:
        return hidden[id(self)](x).detach()


hidden: dict[int, nn.Module] = {}


def test_two_models_that_look_alike_and_answer_otherwise_are_refused(few: Digits) -> None:
    one, two = lenet(), lenet()  # of other scores, and of the same classes, which would differ
    two.load_state_dict({name: 2 * value for name, value in one.state_dict().items()})
    models = {"one": Opaque(one), "two": Opaque(two)}
    with pytest.raises(bench.SuiteError, match="models 'one' and 'two': expected one's answers"):
        bench.benchmark(models, few, attacks="square", eps=0.1, access="scores")


def test_all_models_of_a_benchmark_return_their_logits_at_the_output_named(
    few: Digits, lenet: nn.Module
) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = lenet

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return -self.body(x), self.body(x)

    found = bench.benchmark({"both": Both()}, few, attacks="fgsm", eps=0.1, output=1)
    alone = bench.evaluate(lenet, *few, attack="fgsm", eps=0.1)
    assert found.records["adv_pred"].tolist() == alone.records["adv_pred"].tolist()


def blacken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Leave the ball on every image."""
    return torch.zeros_like(x)


def blacken_first(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Leave the ball on the first image."""
    return torch.cat([torch.zeros_like(x[:1]), x[1:]])


@pytest.mark.parametrize(
    ("attack", "finding"),
    [
        (blacken, "failed: 8 of 8 attacked images are violations"),
        (blacken_first, "1 of 8 attacked images violate the threat model, each counted as a"),
    ],
)
def test_images_that_violate_the_threat_model_are_a_finding(
    attack: Any, finding: str, few: Digits, lenet: nn.Module
) -> None:
    x = few[0]
    with torch.no_grad(), pytest.warns(bench.RobustnessWarning, match=finding):
        found = bench.evaluate(lenet, x, lenet(x).argmax(1), attack=attack)
    assert any(finding in each for each in found.findings)
