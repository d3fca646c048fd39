"""Transfer as a threat model: crafted on one model, judged on another, the attacker seeing one."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bench
from bench.analysis import results
from bench.core.errors import SuiteError
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.models import softmax
from bench.reporting.plots import parameter_sweep, transfer_matrix
from bench.reporting.report import transfer_view
from bench.suite import plan, reader
from bench.suite.identity import ModelFacts

HEAD = """
schema = 1
name = "t"
[data]
name = "digits"
limit = 120
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[models]]
name = "softmax"
label = "linear"
weights = "{weights}"
"""
FGSM = """
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, 0.1]
"""
TEXT = HEAD + FGSM + 'source = "each"\n' + FGSM.replace('"FGSM"', '"plain"')


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear model that knows the digits a little: the mean image of each class."""
    from bench.datasets import digits

    data = digits.load(limit=400)
    x, y = data.read(0, 400).flatten(1), data.labels
    assert y is not None
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    model = softmax.build()
    state = model.state_dict()
    state = {"1.weight": means, "1.bias": -means.square().sum(1) / 2}
    model.load_state_dict(state)
    path = tmp_path_factory.mktemp("linear") / "linear.safetensors"
    save_file(state, path)
    return path


def ran(text: str, out: Path, **options: object) -> results.RunResults:
    read = reader.parse_suite(text, "t.toml", Path())
    runner.run_suite(read, out, RunOptions(device="cpu", **options))  # type: ignore[arg-type]
    return results.read_results(out)


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> results.RunResults:
    return ran(TEXT.format(weights=weights), tmp_path_factory.mktemp("run"))


def row(table: pd.DataFrame, model: str, attack: str, eps: float = 0.1) -> pd.Series:
    (only,) = (
        row
        for _, row in table.iterrows()
        if (row["model"], row["attack"], row["eps"]) == (model, attack, eps)
    )
    return only


def test_examples_crafted_on_one_model_are_judged_by_the_other(
    run: results.RunResults,
    lenet: nn.Module,
    digits: tuple[Tensor, Tensor],
    weights: Path,
) -> None:
    linear = softmax.build().eval()
    linear.load_state_dict(load_file(weights))
    x, y = digits[0][:120].requires_grad_(), digits[1][:120]
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(lenet(x), y), x)
    x_adv = (x + 0.1 * gradient.sign()).clamp(0, 1).detach()
    clean, after = linear(x).argmax(1) == y, linear(x_adv).argmax(1) == y
    crossed = row(run.table, "linear", "FGSM from LeNet")
    assert crossed["clean_correct"] == int(clean.sum())
    assert (
        abs(crossed["robust_correct"] - int((clean & after).sum())) <= 1
    )  # float32 against float32


def test_an_attack_crafted_on_the_model_that_judges_it_is_the_white_box_attack(
    run: results.RunResults,
) -> None:
    for model in ("LeNet", "linear"):
        own = row(run.table, model, f"FGSM from {model}")
        plain = row(run.table, model, "plain")
        assert own["robust_correct"] == plain["robust_correct"]
        assert (own["source"], own["threat_model"]) == (model, "white-box")
    crossed = row(run.table, "linear", "FGSM from LeNet")
    assert crossed["threat_model"] == "black-box, transfer"
    assert row(run.table, "linear", "plain")["source"] == ""


def test_what_the_source_model_is_belongs_to_the_identity_of_a_transfer_alone(
    weights: Path, tmp_path: Path
) -> None:
    def identities(source: str) -> dict[str, str]:
        read = reader.parse_suite(TEXT.format(weights=weights), "t.toml", Path())
        facts = {
            label: ModelFacts(10, (1, 28, 28), 64, print_, "data")
            for label, print_ in (("LeNet", source), ("linear", "linear"))
        }
        return {
            f"{cell.model} {cell.attack} {cell.eps}": cell.identity
            for task in plan.plan_tasks(read, facts)
            for cell in task.cells
        }

    one, other = identities("lenet"), identities("another lenet")
    changed = {name for name in one if one[name] != other[name]}
    assert "linear FGSM from LeNet 0.1" in changed
    assert not [name for name in changed if name.startswith("linear") and "LeNet" not in name]


def test_a_transferred_attack_makes_every_step_unless_the_suite_says_otherwise() -> None:
    text = HEAD.format(weights="random") + FGSM + 'source = "LeNet"\n'
    (entry,) = reader.parse_suite(text, "t.toml", Path()).attacks
    assert (entry.label, entry.source, entry.stop) == ("FGSM from LeNet", "LeNet", "never")
    (entry,) = reader.parse_suite(text + 'stop = "first-success"\n', "t.toml", Path()).attacks
    assert entry.stop == "first-success"


def test_a_source_that_is_no_model_of_the_suite_is_a_mistake_with_the_nearest_label() -> None:
    text = HEAD.format(weights="random") + FGSM + 'source = ["LeNet", "linaer"]\n'
    with pytest.raises(SuiteError, match=r"attacks\[0\].source: no model .*'linaer'.*linear"):
        reader.parse_suite(text, "t.toml", Path())


def test_two_models_of_different_classes_do_not_transfer() -> None:
    text = HEAD.format(weights="random") + FGSM + 'source = "LeNet"\n'
    read = reader.parse_suite(text, "t.toml", Path())
    facts = {"LeNet": ModelFacts(10, (1, 28, 28)), "linear": ModelFacts(2, (1, 28, 28))}
    reasons = {task.model: task.cells[1].reason for task in plan.plan_tasks(read, facts)}
    assert reasons == {
        "LeNet": "",
        "linear": "the source has 10 classes, the model has 2",
    }


@pytest.mark.parametrize("batch_size", [7, 120])
def test_transfer_does_not_depend_on_the_batch_size(
    run: results.RunResults, weights: Path, tmp_path: Path, batch_size: int
) -> None:
    again = ran(TEXT.format(weights=weights), tmp_path, batch_size=batch_size)
    pd.testing.assert_series_equal(run.table["robust_correct"], again.table["robust_correct"])


def test_the_least_likely_class_is_the_one_that_the_attacker_sees(
    weights: Path, tmp_path: Path, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    text = FGSM + 'source = "LeNet"\ngoal = "targeted"\ntarget = "least-likely"\n'
    run = ran(HEAD.format(weights=weights) + text, tmp_path)
    mine = run.stored.frame.query("model == 'linear' and eps == 0.1").sort_values("example")
    assert mine["target"].tolist() == lenet(digits[0][:120]).argmin(1).tolist()


def test_the_matrix_has_a_line_per_source_and_a_column_per_victim(
    run: results.RunResults,
) -> None:
    (matrix,) = transfer_matrix.build_matrices(run.table)
    assert (matrix.sources, matrix.victims) == (["LeNet", "linear"], ["LeNet", "linear"])
    (view,) = transfer_view.tabulate_transfers(run.table)
    assert view.columns == ["crafted on", "evaluated on LeNet", "evaluated on linear"]
    crossed = row(run.table, "linear", "FGSM from LeNet")
    error = 100 * (1 - crossed["robust_correct"] / 120)
    assert view.rows[0][2].startswith(f"{error:.1f} % [")
    ((name, _, figure),) = transfer_matrix.iter_transfer_figures(run.table)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert name == "transfer-FGSM-linf-untargeted"
    assert any(text.startswith(f"{error:.1f}\n") for text in texts)
    legend = figure.get_supxlabel()
    assert "(mean confidence of the fooled examples)" in legend
    assert "framed: crafted on the model itself" in legend


def test_the_map_frames_victims_that_are_among_the_sources(run: results.RunResults) -> None:
    table = run.table.copy()
    _, _, figure = next(transfer_matrix.iter_transfer_figures(table))
    before = len(figure.axes[0].patches)
    table.loc[table["model"] == "linear", "threat_model"] = "white-box, one of the sources"
    _, _, figure = next(transfer_matrix.iter_transfer_figures(table))
    assert len(figure.axes[0].patches) == before + 1


def test_a_model_that_transfer_fools_more_than_its_own_gradient_is_named(
    run: results.RunResults,
) -> None:
    assert transfer_matrix.find_hidden_gradients(run.table) == []
    table = run.table.copy()
    own = (table["model"] == "linear") & (table["attack"] == "FGSM from linear")
    clean = table.loc[own & (table["eps"] == 0)].iloc[0]
    for name in ("robust_correct", "robust_accuracy", "robust_low", "robust_high"):
        table.loc[own, name] = clean[name]  # as if its own gradient were of no use
    (sentence,) = transfer_matrix.find_hidden_gradients(table)
    assert sentence.startswith("linear: at eps 0.1, FGSM crafted on LeNet makes ")
    assert "gradient masking" in sentence


def test_a_cell_without_a_number_is_a_dash_in_the_matrix(run: results.RunResults) -> None:
    table = run.table.copy()
    crossed = (table["model"] == "linear") & (table["attack"] == "FGSM from LeNet")
    table.loc[crossed, ["status", "reason"]] = ["failed", "boom"]
    (view,) = transfer_view.tabulate_transfers(table)
    assert view.rows[0][2] == "— [1]"
    assert view.notes == ["failed: boom"]


def test_one_call_crafts_on_a_source_and_judges_on_the_model(
    run: results.RunResults, lenet: nn.Module, digits: tuple[Tensor, Tensor], weights: Path
) -> None:
    linear = softmax.build()
    linear.load_state_dict(load_file(weights))
    x, y = digits[0][:120], digits[1][:120]
    table = bench.evaluate(linear, x, y, attack="fgsm", eps=0.1, source=lenet, device="cpu").table
    wanted = row(run.table, "linear", "FGSM from LeNet")
    assert table["robust_correct"].item() == wanted["robust_correct"]
    assert table["threat_model"].item() == "black-box, transfer"
    assert table["stop"].item() == "never"


# -------------------------------------------------------------------------- a parameter varied


def test_a_varied_parameter_gives_an_attack_for_each_value() -> None:
    text = HEAD.format(weights="random") + FGSM.replace("fgsm", "pgd").replace("FGSM", "PGD")
    text += "params = { alpha = 0.02 }\nvary = { steps = [1, 5] }\n"
    entries = reader.parse_suite(text, "t.toml", Path()).attacks
    assert [entry.label for entry in entries] == ["PGD, steps 1", "PGD, steps 5"]
    assert [(e.params.steps, e.params.alpha, e.value) for e in entries] == [
        (1, 0.02, 1),
        (5, 0.02, 5),
    ]
    assert {entry.family for entry in entries} == {"PGD"}


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        ("{ stpes = [1] }", r"attacks\[0\].vary.stpes: unknown key.*steps"),
        ("{ steps = [0] }", r"attacks\[0\].vary.steps: expected at least 1"),
        ("{ steps = [] }", "expected one parameter with a list of values"),
        ("{ steps = [1], alpha = [0.1] }", "expected one parameter with a list of values"),
    ],
)
def test_a_mistake_in_what_is_varied_is_the_users(vary: str, sentence: str) -> None:
    text = HEAD.format(weights="random") + FGSM.replace("fgsm", "pgd") + f"vary = {vary}\n"
    with pytest.raises(SuiteError, match=sentence):
        reader.parse_suite(text, "t.toml", Path())


def test_success_and_norms_are_drawn_against_what_is_varied(tmp_path: Path) -> None:
    text = HEAD.split("[[models]]")[0] + '[[models]]\nname = "lenet"\nweights = "digits"\n'
    text += FGSM.replace("fgsm", "pgd").replace("FGSM", "PGD") + "vary = { steps = [1, 4, 20] }\n"
    table = ran(text, tmp_path).table
    ((name, _, figure),) = parameter_sweep.iter_sweep_figures(table)
    assert isinstance(figure, Figure)
    assert name == "steps-lenet-linf-untargeted"
    drawn = figure.axes[0].lines[0]
    wanted = 100 * table[table["eps"] > 0]["attack_success_rate"].astype(float)
    assert list(drawn.get_xdata()) == [1, 4, 20]
    assert list(drawn.get_ydata()) == pytest.approx(list(wanted))


def test_a_librarys_attack_transfers_as_bench_own_does(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], weights: Path
) -> None:
    linear = softmax.build()
    linear.load_state_dict(load_file(weights))
    x, y = digits[0][:120], digits[1][:120]
    ours, theirs = (
        bench.evaluate(linear, x, y, attack=name, eps=0.1, source=lenet, device="cpu").table
        for name in ("fgsm", "torchattacks:FGSM")
    )
    assert ours["robust_correct"].item() == theirs["robust_correct"].item()


def test_each_value_of_a_varied_parameter_has_a_matrix_and_each_source_a_line(
    tmp_path: Path, weights: Path
) -> None:
    text = FGSM.replace("fgsm", "pgd").replace("FGSM", "PGD")
    text += 'source = "each"\nvary = { steps = [1, 8] }\n'
    table = ran(HEAD.format(weights=weights) + text, tmp_path).table
    matrices = transfer_matrix.build_matrices(table)
    assert [matrix.attack for matrix in matrices] == ["PGD, steps 1", "PGD, steps 8"]
    for matrix, steps in zip(matrices, (1, 8), strict=True):
        for (source, victim), cell in matrix.cells.items():
            wanted = row(table, victim, f"PGD from {source}, steps {steps}")
            assert cell["robust_correct"] == wanted["robust_correct"]
    figure = next(
        figure for name, _, figure in parameter_sweep.iter_sweep_figures(table) if "LeNet" in name
    )
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["PGD from LeNet", "PGD from linear"]


def test_an_attack_without_gradients_says_nothing_of_hidden_ones(run: results.RunResults) -> None:
    table = run.table.copy()
    own = (table["model"] == "linear") & (table["attack"] == "FGSM from linear")
    clean = table.loc[own & (table["eps"] == 0)].iloc[0]
    for name in ("robust_correct", "robust_accuracy", "robust_low", "robust_high"):
        table.loc[own, name] = clean[name]
    table["threat_model"] = table["threat_model"].replace("white-box", "black-box, score-based")
    assert transfer_matrix.find_hidden_gradients(table) == []


def test_a_crosscheck_of_examples_from_two_sources_is_a_mistake() -> None:
    text = HEAD.format(weights="random") + FGSM + 'source = "each"\n'
    text += '[[crosschecks]]\nours = "FGSM from LeNet"\nreference = "FGSM from linear"\n'
    with pytest.raises(SuiteError, match="expected both sides crafted on the same source model"):
        reader.parse_suite(text, "t.toml", Path())
