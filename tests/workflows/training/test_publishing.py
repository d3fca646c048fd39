"""What `bench train` leaves behind: the best of several seeds, a true card, a page, figures."""

import json
import re
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import cli
from bench.attacks.trained_weights import WEIGHTS as ATTACKERS
from bench.core import registry
from bench.models.published_weights import WEIGHTS
from bench.workflows.training import figures, model_card, page, recipe, trainer
from bench.workflows.training.adversarial import AdversarialBatches

RECIPE = """
schema = 1
title = "LeNet | <b>on</b> *digits*"
source = "a test, [1](x)"
weights = "a test"
seed = 5
seeds = 2
epochs = 2
batch_size = 64
validation = 700
model = { name = "lenet" }
data = { name = "digits" }
optimiser = { name = "Adam", params = { lr = 2e-3, weight_decay = 1e-6 } }
store = "float16"
adversarial = { attack = "fgsm", eps = 0.1 }

[published]
source = "Somebody et al., table 1"
test_accuracy = 99.218
per_class = [99.49, 99.56]
adversarial_error = 17.9
adversarial_confidence = 81.4
seconds_per_epoch = "9 to 20"
note = "Told | there."
"""
PLAIN = """
schema = 1
title = "Softmax"
source = "a test"
weights = "plain"
seed = 0
epochs = 1
batch_size = 64
validation = 100
model = { name = "softmax" }
data = { name = "digits" }
optimiser = { name = "Adam" }
"""


def bench_train(folder: Path, text: str, *words: str) -> Result:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    out = str(folder / "out")
    result = CliRunner().invoke(cli.cli, ["train", str(path), "--out", out, *words])
    assert result.exception is None, result.output
    return result


def read_document(folder: Path, stem: str = "lenet-a test") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "out" / f"{stem}.json").read_text("utf-8"))
    return document


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A folder into which two seeds have been trained against FGSM, and what was printed."""
    folder = tmp_path_factory.mktemp("published")
    return folder, bench_train(folder, RECIPE, "--device", "cpu")


def test_of_several_seeds_the_best_on_attacked_validation_images_is_published(
    published: tuple[Path, Result],
) -> None:
    folder, result = published
    lines = read_document(folder)["seeds"]
    assert [line["seed"] for line in lines] == [5, 6]
    kept = max(lines, key=lambda line: line["validation_adversarial_correct"])
    assert read_document(folder)["seed"] == kept["seed"]
    for key in ("best_epoch", "validation_correct", "test_correct", "test_adversarial_correct"):
        assert read_document(folder)[key] == kept[key]
    assert f"kept: seed {kept['seed']} of 5, 6" in result.output
    assert re.search(r"epoch 2/2: loss .*, validation \d+/700 \(attacked \d+\), ", result.output)
    assert not list((folder / "out").glob("*.progress"))


def test_one_seed_alone_does_what_it_does_among_others(
    published: tuple[Path, Result], tmp_path: Path
) -> None:
    bench_train(tmp_path, RECIPE, "--seed", "6", "--device", "cpu")
    alone, among = read_document(tmp_path), read_document(published[0])
    assert alone["seeds"] == [among["seeds"][1]]
    assert alone["seed"] == 6
    text = (tmp_path / "out" / "lenet-a test.md").read_text("utf-8")
    assert "bench train small.toml --seed 6\n" in text
    assert "## Seeds" not in text


def test_an_interruption_loses_no_finished_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.train_model
    begun: list[int] = []

    def cut(checked: recipe.Recipe, *rest: Any) -> trainer.TrainedModel:
        begun.append(checked.seed)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return whole(checked, *rest)

    monkeypatch.setattr(trainer, "train_model", cut)
    text = PLAIN.replace("seed = 0", "seed = 3\nseeds = 2")
    path = tmp_path / "small.toml"
    path.write_text(text, encoding="utf-8")
    CliRunner().invoke(cli.cli, ["train", str(path), "--out", str(tmp_path / "out")])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["small.3.progress"]
    result = bench_train(tmp_path, text)
    assert result.output.count("epoch 1/1") == 1
    assert begun == [3, 4, 3, 4]
    assert [line["seed"] for line in read_document(tmp_path, "softmax-plain")["seeds"]] == [3, 4]
    (tmp_path / "out" / "small.3.progress").write_bytes(b"of another time")
    assert bench_train(tmp_path, text, "--fresh").output.count("epoch 1/1") == 2


def test_the_attacked_test_images_are_judged_with_the_weights_as_stored(
    published: tuple[Path, Result],
) -> None:
    out, result = published[0] / "out", read_document(published[0])
    model: nn.Module = registry.find("models", "lenet").build().eval()
    model.load_state_dict(load_file(out / "lenet-a test.safetensors"))
    test = registry.find("datasets", "digits").load(split="test")
    x, y = test.read(0, test.n), test.labels
    x_adv = AdversarialBatches(recipe.Adversary(attack="fgsm", eps=0.1), 5).validate(
        model, x, y, torch.arange(test.n)
    )
    with torch.no_grad():
        confidence, pred = model(x_adv).softmax(1).max(1)
    assert result["test_adversarial_correct"] == int((pred == y).sum()) < result["test_correct"]
    assert result["test_adversarial_mean_confidence_wrong"] == pytest.approx(
        float(confidence[pred != y].mean()), abs=1e-4
    )
    head, *rows = (out / "lenet-a test.csv").read_text("utf-8").splitlines()
    assert "validation_adversarial_loss,validation_adversarial_correct" in head
    assert len(rows) == 2


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(text)


def test_the_page_lays_what_was_measured_beside_what_the_source_reports(
    published: tuple[Path, Result],
) -> None:
    folder, _ = published
    text, result = (folder / "out" / "lenet-a test.md").read_text("utf-8"), read_document(folder)
    cells = [[c.strip() for c in line.split(" | ")] for line in text.splitlines()]
    by_name = {row[0].removeprefix("| "): row for row in cells if len(row) == 4}
    k = result["test_correct"]
    assert by_name["test accuracy"][1] == f"{k}/500"
    assert re.fullmatch(rf"{k / 5:.2f} % \[[\d.]+, [\d.]+\]", by_name["test accuracy"][2])
    assert by_name["test accuracy"][3] == "99.218 % |"
    fooled = 500 - result["test_adversarial_correct"]
    assert by_name["error rate on attacked test images"][1] == f"{fooled}/500"
    assert by_name["error rate on attacked test images"][3] == "17.9 % |"
    assert by_name["mean confidence of those test errors"][3] == "81.4 % |"
    assert by_name["1"][3] == "99.56 % |"
    assert by_name["2"][3] == "— |"
    assert "| 9 to 20 s |" in text
    assert result["weights_sha256"] in text
    assert "bench train small.toml\n" in text


def test_the_page_is_sound_markdown_with_any_marks_in_the_recipe(
    published: tuple[Path, Result],
) -> None:
    out = published[0] / "out"
    html = rendered((out / "lenet-a test.md").read_text("utf-8"))
    assert "<h1>LeNet | &lt;b&gt;on&lt;/b&gt; *digits*</h1>" in html
    assert "a test, [1](x)" in html
    assert "Told | there." in html
    assert html.count("<table>") == 3
    for table in html.split("<table>")[1:]:
        rows = re.findall(r"<tr>(.*?)</tr>", table.split("</table>")[0], re.DOTALL)
        assert len({len(re.findall(r"<t[hd]", row)) for row in rows}) == 1
    links = re.findall(r'<img src="(.*?)"', html)
    assert len(links) == 3
    for link in links:
        assert (out / urllib.parse.unquote(link)).stat().st_size > 5000


def test_the_page_is_a_function_of_recipe_and_card(published: tuple[Path, Result]) -> None:
    weights = published[0] / "out" / "lenet-a test.safetensors"
    text = weights.with_suffix(".md").read_bytes()
    assert (
        page.write_page(recipe.read_recipe(str(published[0] / "small.toml")), weights).read_bytes()
        == text
    )


PAGES = Path(__file__).parents[3] / "results" / "training"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PAGES.glob("*.md")) if path.stem in recipe.list_recipes()],
    ids=lambda path: path.stem,
)
def test_every_published_page_is_what_its_recipe_and_card_give(path: Path) -> None:
    homes = (WEIGHTS, ATTACKERS, PAGES)  # a card lies beside its weights, if those are shipped
    cards = [folder / f"{path.stem}.json" for folder in homes]
    document = json.loads(next(each for each in cards if each.exists()).read_text("utf-8"))
    if recipe.detect_recipe_kind(path.stem) == "attack":
        result = page.render_attack_page(recipe.read_attack_recipe(path.stem), document, path.stem)
    else:
        result = page.render_page(recipe.read_recipe(path.stem), document, path.stem)
    assert result == path.read_text("utf-8")


def test_a_plain_training_has_no_attacked_figures_and_no_column_without_a_source(
    tmp_path: Path,
) -> None:
    bench_train(tmp_path, PLAIN)
    result, out = read_document(tmp_path, "softmax-plain"), tmp_path / "out"
    assert not [key for key in result if "adversarial" in key]
    text = (out / "softmax-plain.md").read_text("utf-8")
    assert "source |" not in text
    assert "attacked" not in text
    only = recipe.Published(source="Somebody", adversarial_error=99.9, adversarial_confidence=79.3)
    plain = replace(recipe.read_recipe(str(tmp_path / "small.toml")), published=only)
    assert page.render_page(plain, result, "softmax-plain") == text
    (row,) = (out / "softmax-plain.csv").read_text("utf-8").splitlines()[1:]
    assert row.endswith(",,,,")


EPOCHS = [
    trainer.Epoch(k, 0.1, 1 / k, 90, 100, 1.2 / k, 80, 100, 1.0, 2 / k, 70, 2.2 / k, 60)
    for k in (1, 2, 3)
]


def test_curves_under_adversarial_training_are_four_lines_distinct_in_grey() -> None:
    for axes in figures.plot_learning_curves(EPOCHS, EPOCHS[1]).axes:
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
        looks = {(line.get_linestyle(), round(luminance(line.get_color()), 1)) for line in lines}
        assert len(looks) == len(lines) == 4
    plain = [epoch._replace(adversarial_loss=None, adversarial_correct=None) for epoch in EPOCHS]
    for axes in figures.plot_learning_curves(plain, plain[1]).axes:
        assert len([line for line in axes.lines if len(line.get_xdata()) == 3]) == 2


def luminance(colour: Any) -> float:
    red, green, blue = colour
    return float(0.299 * red + 0.587 * green + 0.114 * blue)


def test_curves_of_a_perfect_first_epoch_are_drawn() -> None:
    perfect = EPOCHS[0]._replace(train_correct=100, validation_correct=100, train_loss=0.0)
    only = perfect._replace(adversarial_loss=None, adversarial_correct=None, validation_loss=0.0)
    assert len(figures.plot_learning_curves([only], only).axes) == 2


def test_figures_serve_many_classes_with_long_names_and_classes_without_images() -> None:
    names = [f"a long name of class {k}" for k in range(12)]
    drawn = figures.plot_class_accuracy([3] * 11 + [0], [4] * 11 + [0], names)
    labels = [text.get_text() for text in drawn.axes[0].get_xticklabels()]
    assert len(labels) == 11
    assert max(map(len, labels)) <= 14
    many = figures.plot_class_accuracy([3] * 300, [4] * 300, list(map(str, range(300))))
    assert len(many.axes[0].texts) == 0
    images, wrong = torch.rand(6, 3, 8, 8), Tensor([1, 1, 2, 3, 4, 5]).long()
    titles = [
        t.get_text()
        for t in figures.plot_predictions(images, wrong * 0, wrong, names).axes[0].texts
    ]
    assert all(len(title) <= 15 for title in titles)


def test_of_equal_seeds_the_first_is_kept() -> None:
    same = trainer.TrainedModel(nn.Identity(), EPOCHS[0], EPOCHS)
    assert (
        model_card.select_best_run([model_card.SeedRun(7, same), model_card.SeedRun(8, same)]).seed
        == 7
    )


@pytest.mark.parametrize(
    "name",
    [n for n in recipe.list_recipes() if "mnist" in n and recipe.detect_recipe_kind(n) == "model"],
)
def test_what_a_shipped_recipe_says_of_classes_is_of_all_ten(name: str) -> None:
    result = recipe.read_recipe(name).published
    assert result is None or len(result.per_class) in (0, 10)
