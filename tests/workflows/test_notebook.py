"""Results in a console and in a notebook, and the notebook that is shipped."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import bench

NOTEBOOK = Path(__file__).parents[2] / "suites" / "example.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell as a notebook does; the value of its last expression, or None."""
    body = ast.parse(source).body
    quiet = source.rstrip().endswith(";") or not isinstance(body[-1], ast.Expr)
    last = None if quiet else body.pop()
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_shipped_notebook_runs_and_shows_what_it_says() -> None:
    names: dict[str, Any] = {}
    cells = [
        cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]  # fmt: skip
    assert not any(cell["outputs"] for cell in cells)  # a stored number would be stale one day
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]
    result, records, run, figure, worst = (value for value in shown if value is not None)
    assert "clean accuracy" in repr(result)
    assert 0 < len(records) <= 5
    assert "worst case" in repr(run)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")  # pyplot, which would show it, is not loaded
    assert worst["attacks"].eq(4).all()


@pytest.fixture(scope="module")
def few() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(8, 1, 8, 8)
    return net, x, net(x).argmax(1)


def test_an_evaluation_prints_its_accuracies_and_findings(
    few: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    found = bench.evaluate(*few, attack="pgd", eps=["1/255", 0.5])
    for text in (repr(found), str(found), found._repr_html_()):
        assert "Sequential" in text
        assert "clean accuracy 100.0 %" in text
        assert "1/255" in text
        assert len(text) < 3_000
    assert "0.0 %" in repr(found)
    assert found.plot().axes[0].get_title(loc="left").startswith("Sequential")
    with pytest.raises(bench.SuiteError, match="no model 'x'; known: Sequential"):
        found.plot("x")
    with pytest.raises(bench.SuiteError, match="no attack on 'Sequential' in 'l2'; known: linf"):
        found.plot(norm="l2")


def test_a_notebook_shows_a_result_once(
    few: tuple[nn.Module, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bench.evaluate(*few, attack="fgsm", eps=[0.1])
    text = repr(found)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert repr(found) == text  # rich would display it beside the table and return nothing


def test_labels_are_escaped_in_a_notebook(
    few: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    net, *data = few
    run = bench.benchmark({"<b>net</b>": net}, tuple(data), attacks=["fgsm"], eps=[0.1, 0.2])
    assert "<b>net" not in run._repr_html_()
    assert "&lt;b&gt;net&lt;/b&gt;" in run._repr_html_()
    assert "<b>net</b>" in repr(run)


def test_a_run_of_a_suite_prints_its_worst_case_and_audit(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'schema = 1\nname = "s"\ndata = { name = "digits", limit = 4 }\n'
        'models = [{ name = "softmax", weights = "random" }]\n'
        'attacks = [{ name = "fgsm", norm = "linf", eps = [0.1] },'
        ' { name = "noise", norm = "linf", eps = [0.1] }]\n',
        encoding="utf-8",
    )
    found = bench.run(str(tmp_path / "s.toml"), tmp_path / "out", device="cpu")
    assert "worst case" in repr(found)
    assert "audit of softmax: " in repr(found)
    assert "worst case" not in repr(bench.api.results.read_results(tmp_path / "out"))
    assert len(repr(found)) < 3_000
    assert found.plot().axes
    assert found.replace(notes=[]).notes == []
