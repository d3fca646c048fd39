"""The attack itself: what a generator may change, and what is said of its weights."""

import os
from pathlib import Path
from typing import Any

import click.testing
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bench
from bench import cli
from bench.attacks import advgan, trained_weights
from bench.core import rng
from bench.core.contracts.types import Threat
from bench.core.errors import ContractError, SuiteError
from bench.suite import plan, reader

SHAPE = (1, 28, 28)


def written(path: Path, seed: int = 0, **metadata: str) -> str:
    """Weights of a generator that has learned nothing."""
    with rng.seed_global("a generator", seed):
        network = advgan.generator(SHAPE)
    result = dict(advgan.metadata(SHAPE, Threat(norm="linf", eps=0.3))) | metadata
    save_file(network.state_dict(), path, metadata=result)
    return str(path)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return written(tmp_path / "advgan-mine.safetensors")


def crafted(x: Tensor, eps: float, weights: str) -> Tensor:
    nothing: Any = None  # neither the model nor the labels nor noise is looked at
    threat = Threat(norm="linf", eps=eps)
    return advgan.run(nothing, x, nothing, threat, advgan.Params(weights=weights), nothing)


@pytest.mark.parametrize("eps", [0.01, 0.3, 1.0])
def test_every_pixel_stays_in_ball_and_box(weights: str, digits: Any, eps: float) -> None:
    x = digits[0]
    x_adv = crafted(x, eps, weights)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert eps / 2 < (x_adv - x).abs().max() <= eps + 1e-6


def test_the_change_grows_with_eps_in_proportion(weights: str) -> None:
    x = torch.full((2, *SHAPE), 0.5)
    x[:, :, 5:15, 5:15] = 0.6
    one, two = (crafted(x, eps, weights) - x for eps in (0.1, 0.2))
    assert torch.allclose(2 * one, two, atol=1e-6)


def test_an_example_does_not_depend_on_its_batch(weights: str, digits: Any) -> None:
    x = digits[0][:20]
    whole = crafted(x, 0.3, weights)
    single = torch.cat([crafted(image, 0.3, weights) for image in x.split(1)])
    assert torch.allclose(whole, single, atol=1e-5)


def test_it_asks_the_model_nothing_and_the_table_has_a_dash_for_its_floor(
    weights: str, lenet: Any, digits: Any
) -> None:
    evaluation = bench.evaluate(
        lenet, *digits, attack="advgan", norm="linf", eps=[0.0, 0.3], device="cpu",
        params={"weights": weights},
    )  # fmt: skip
    assert evaluation.records[["forwards", "backwards"]].to_numpy().sum() == 0
    assert evaluation.table["floor_ratio"].isna().all()
    assert evaluation.table["examples_per_second"].iloc[1] > 0


def test_a_run_of_it_alone_is_planned_reported_and_drawn(weights: str, tmp_path: Path) -> None:
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 8\n[[models]]\nname = "lenet"\n'
        'weights = "digits"\n[[attacks]]\nname = "advgan"\nnorm = "linf"\neps = [0, 0.3]\n'
        f"params = {{ weights = {weights!r} }}\n"
    )
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    checked = reader.read_suite(str(tmp_path / "s.toml"))
    (task,) = plan.plan_tasks(checked, plan.collect_declared_facts(checked))
    assert [(cell.passes, cell.gradients) for cell in task.cells] == [(0, 0), (0, 0)]
    words = ["run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    said = click.testing.CliRunner().invoke(cli.cli, words, standalone_mode=False)
    assert (said.exception, said.return_value) == (None, 0)
    assert (tmp_path / "out" / "plots" / "throughput.png").stat().st_size > 5000
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_other_weights_in_the_same_file_are_another_cell(
    weights: str, lenet: Any, digits: Any
) -> None:
    def cell() -> Any:
        return bench.evaluate(
            lenet, *digits, attack="advgan", norm="linf", eps=0.3, device="cpu",
            params={"weights": weights}, keep_adversarial=True,
        )  # fmt: skip

    first = cell()
    written(Path(weights), seed=1)
    os.utime(weights, ns=(0, 7))  # written again within one tick of the clock
    second = cell()
    assert first.table["cell"].item() != second.table["cell"].item()
    assert not torch.equal(first.adversarial, second.adversarial)


def test_another_eps_than_the_trained_one_is_a_caveat(weights: str) -> None:
    params = advgan.Params(weights=weights)
    assert advgan.caveats(params, "linf", 0.3) == ()
    (only,) = advgan.caveats(params, "linf", 0.1)
    assert only == "The generator was trained at eps = 0.3; here its output is scaled."
    missing = advgan.Params(weights="nowhere")
    assert advgan.caveats(missing, "linf", 0.1) == ()  # so that a suite can be planned before


def test_missing_weights_are_named_with_what_there_is_and_how_to_make_them(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained_weights, "WEIGHTS", Path(weights).parent)
    with pytest.raises(SuiteError) as caught:
        advgan.reads(advgan.Params(weights="mime"))
    (only,) = str(caught.value).splitlines()
    assert str(Path(weights).parent / "advgan-mime.safetensors") in only
    assert "did you mean 'mine'" in only
    assert f"`bench train advgan-mime --out {Path(weights).parent}`" in only


@pytest.mark.parametrize("what", ["cut", "no metadata", "another shape", "another network"])
def test_weights_that_are_none_are_reported_in_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "advgan-bad.safetensors"
    written(path, **({"shape": "big"} if what == "another shape" else {}))
    if what == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif what == "no metadata":
        save_file(load_file(path), path)
    elif what == "another network":
        result = advgan.metadata(SHAPE, Threat(norm="linf", eps=0.3))
        save_file({"weight": torch.zeros(3)}, path, metadata=dict(result))
    with pytest.raises(SuiteError) as caught:
        advgan.reads(advgan.Params(weights=str(path)))
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
    assert "bench train advgan-bad" in str(caught.value)


def test_images_of_another_size_than_it_learned_from_are_refused(weights: str) -> None:
    with pytest.raises(ContractError, match=r"for images \(1, 28, 28\), got \(1, 32, 32\)"):
        crafted(torch.zeros(1, 1, 32, 32), 0.3, weights)


def test_sides_that_cannot_be_halved_twice_are_refused() -> None:
    with pytest.raises(SuiteError, match="got 30x28"):
        advgan.build((1, 30, 28), advgan.Training())
