"""Models that only answer queries: a callable, a module, a service on this machine."""

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import evaluate
from bench.analysis.results import read_results
from bench.core import optional
from bench.core.contracts.dataset import Data
from bench.core.errors import ContractError, SuiteError
from bench.datasets.in_memory import make_data
from bench.engine.tracing import trace_forward
from bench.evaluation import loading
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.models.query_only import QueryOnlyModel
from bench.suite import reader
from bench.suite.schema import ModelEntry

CPU = torch.device("cpu")


@pytest.fixture
def data(digits: tuple[Tensor, Tensor]) -> Data:
    return make_data("digits", digits[0][:40], digits[1][:40], tuple("0123456789"))


class Service(BaseHTTPRequestHandler):
    """LeNet behind the protocol; the path says what it shows, and how it misbehaves."""

    net: nn.Module
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with torch.no_grad():
            scores = type(self).net(torch.from_numpy(np.load(io.BytesIO(body))))
        type(self).asked += len(scores)
        kind, answer = "application/json", json.dumps(scores.tolist()).encode()
        if self.path == "/labels":
            answer = json.dumps(scores.argmax(1).tolist()).encode()
        elif self.path == "/npy":
            kind, result = "application/octet-stream", io.BytesIO()
            np.save(result, scores.numpy())
            answer = result.getvalue()
        elif self.path == "/slow":
            time.sleep(1.0)
        elif self.path == "/pickle":
            kind, result = "application/octet-stream", io.BytesIO()
            np.save(result, np.array([{}]), allow_pickle=True)
            answer = result.getvalue()
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/scores")
            self.end_headers()
            return
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def service(lenet: nn.Module) -> Iterator[str]:
    handler = type("Own", (Service,), {"net": lenet})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def load(data: Data, name: str, base: Path = Path(), **keys: Any) -> LoadedModel:
    return loading.load_model(ModelEntry(name=name, label="net", **keys), base, 0, data, CPU)


@pytest.mark.parametrize("path", ["scores", "npy"])
def test_a_service_that_shows_scores_answers_as_its_net_does(
    service: str, data: Data, lenet: nn.Module, path: str
) -> None:
    loaded = load(data, f"{service}/{path}", access="scores")
    x = data.read(0, 5)
    assert torch.allclose(loaded.model(x).float(), lenet(x), atol=1e-5)  # JSON holds float64
    assert (loaded.classes, loaded.access, loaded.findings) == (10, "scores", ())


def test_a_service_that_shows_labels_is_sure_of_them(
    service: str, data: Data, lenet: nn.Module
) -> None:
    loaded = load(data, f"{service}/labels", access="labels")
    logits = loaded.model(data.read(0, 5))
    assert torch.equal(logits.argmax(1), lenet(data.read(0, 5)).argmax(1))
    assert float(logits.softmax(1).amax(1).min()) == 1.0
    assert (loaded.classes, loaded.findings) == (10, ())


REFUSED = {
    "slow": (0.2, "no answer to 16 images in 0.2 s"),
    "broken": (5.0, "answered 500"),
    "moved": (5.0, "answered 302"),
    "pickle": (5.0, "expected JSON or an array file, got neither"),
    "labels": (5.0, "expected scores (n, classes) with n = 16, got (16,)"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_service_that_misbehaves_is_reported_in_one_sentence(
    service: str, data: Data, path: str
) -> None:
    seconds, part = REFUSED[path]
    with pytest.raises(SuiteError) as caught:
        load(data, f"{service}/{path}", access="scores", params={"timeout": seconds})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_reported(data: Data) -> None:
    with pytest.raises(SuiteError, match="could not be asked"):
        load(data, "http://127.0.0.1:9/predict", access="scores")


@pytest.mark.parametrize("url", ["http://192.0.2.7/predict", "http://example.invalid:80/x"])
def test_images_go_to_another_machine_only_where_the_suite_says_so(data: Data, url: str) -> None:
    with pytest.raises(SuiteError, match="expected this machine"):
        load(data, url, access="scores")


def test_a_callable_needs_to_say_what_it_shows(data: Data, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return lambda x: x.mean((1, 2, 3))\n")
    with pytest.raises(SuiteError, match='say access = "scores" or "labels"'):
        load(data, "mine.py:make", tmp_path)


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (lambda x: [11] * len(x), "expected classes from 0 to 9, got 11 to 11"),
        (lambda x: [0.5] * len(x), "whole numbers"),
        (lambda x: [1], "with n = 2"),
    ],
)
def test_labels_that_are_none_are_reported(answer: Any, part: str) -> None:
    with pytest.raises(ContractError) as caught:
        QueryOnlyModel("net", answer, "labels", 10)(torch.zeros(2, 1, 28, 28))
    assert part in str(caught.value)


def test_what_only_answers_has_no_gradient_and_cannot_be_followed(lenet: nn.Module) -> None:
    wall = QueryOnlyModel("net", lenet, "scores", 10)
    assert not wall(torch.zeros(2, 1, 28, 28, requires_grad=True)).requires_grad
    assert trace_forward(wall) is None


def test_another_net_behind_the_same_address_has_another_fingerprint(data: Data) -> None:
    one, other = (
        checks.preflight(
            "net", QueryOnlyModel("net", lambda x, k=k: [k] * len(x), "labels", 10), data, CPU
        )
        for k in (1, 2)
    )
    assert one.fingerprint != other.fingerprint


def test_a_callable_is_evaluated_as_far_as_it_shows_itself(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (each[:20] for each in digits)

    def ask(images: Tensor) -> Any:
        return lenet(images).detach().numpy()

    given = {"eps": 0.3, "params": {"steps": 20}, "device": "cpu"}
    queried = evaluate(ask, x, y, attack="square", access="scores", **given)
    itself = evaluate(lenet, x, y, attack="square", **given)
    assert queried.records["adv_pred"].tolist() == itself.records["adv_pred"].tolist()
    labels = evaluate(
        lambda x: lenet(x).argmax(1), x, y, attack="noise", access="labels", classes=10
    )
    assert labels.table["status"].item() == "ok"
    with pytest.raises(SuiteError, match="the attack needs scores, the model shows labels"):
        evaluate(lambda x: lenet(x).argmax(1), x, y, attack="square", access="labels", classes=10)
    with pytest.raises(SuiteError, match=r"got function; if it only answers queries, say access"):
        evaluate(ask, x, y, attack="noise")


def test_evaluate_allows_findings_by_name(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x, y = (each[:20] for each in digits)
    sure = nn.Sequential(lenet, nn.Softmax(1)).eval()
    with pytest.raises(SuiteError, match=r'allow = \["probabilities"\]'):
        evaluate(sure, x, y, attack="fgsm", device="cpu")
    evaluation = evaluate(sure, x, y, attack="fgsm", device="cpu", allow=["probabilities"])
    assert evaluation.table["status"].item() == "ok"
    with pytest.raises(SuiteError, match="did you mean 'probabilities'"):
        evaluate(sure, x, y, attack="fgsm", device="cpu", allow=["probability"])


ATTACKS = {"noise": "ok", "square": "ok", "fgsm": "the attack needs gradients, the model shows"}


@pytest.mark.parametrize("access", ["scores", "labels"])
def test_a_run_skips_what_the_model_does_not_show_and_does_the_rest(
    service: str, tmp_path: Path, access: str
) -> None:
    entries = "".join(
        f'[[attacks]]\nname = "{name}"\nnorm = "linf"\neps = [0.3]\n'
        + ("params = { steps = 20 }\n" if name == "square" else "")
        for name in ATTACKS
    )
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 20\n[[models]]\n'
        f'name = "{service}/{access}"\nlabel = "net"\naccess = "{access}"\n{entries}'
    )
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    checked = reader.read_suite(str(tmp_path / "s.toml"))
    runner.run_suite(checked, tmp_path / "out", RunOptions(device="cpu"))
    table = read_results(tmp_path / "out").table.set_index("attack")
    assert table.loc["noise", "status"] == "ok"
    assert table.loc["fgsm", "status"] == "skipped"
    assert table.loc["fgsm", "reason"].startswith(ATTACKS["fgsm"])
    if access == "labels":
        assert "the attack needs scores, the model shows labels" in table.loc["square", "reason"]
    else:
        assert table.loc["square", "robust_correct"] < table.loc["noise", "robust_correct"]
        assert table.loc["square", "backwards_per_example"] == 0


WITHOUT_GRADIENTS = {
    "square": ("scores", "linf", 0.3, "steps = 30"),
    "torchattacks:Square": ("scores", "linf", 0.3, "n_queries = 30"),
    "torchattacks:Pixle": ("scores", "l0", 784, "restarts = 10, max_iterations = 5"),
    "foolbox:HopSkipJumpAttack": (
        "labels", "l2", 9.0,
        "steps = 2, initial_gradient_eval_steps = 10, max_gradient_eval_steps = 10",
    ),
    "foolbox:BoundaryAttack": ("labels", "l2", 6.0, "steps = 50"),
    "art:SquareAttack": ("scores", "linf", 0.3, "max_iter = 30"),
    "art:HopSkipJump": ("labels", "l2", 9.0, "max_iter = 2, max_eval = 20, init_eval = 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_attacks_by_scores_and_by_labels_break_what_a_service_shows(
    service: str, tmp_path: Path, name: str
) -> None:
    library = name.partition(":")[0]
    if library in ("foolbox", "art") and (reason := optional.missing_reason(library)):
        pytest.skip(reason)
    access, norm, eps, params = WITHOUT_GRADIENTS[name]
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 8\n[[models]]\n'
        f'name = "{service}/{access}"\nlabel = "net"\naccess = "{access}"\n'
        f'[[attacks]]\nname = "{name}"\nnorm = "{norm}"\neps = [{eps}]\nparams = {{ {params} }}\n'
    )
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    runner.run_suite(
        reader.read_suite(str(tmp_path / "s.toml")), tmp_path / "out", RunOptions(device="cpu")
    )
    (row,) = read_results(tmp_path / "out").table.to_dict("records")
    assert (row["status"], row["reason"]) == ("ok", "")
    assert row["robust_correct"] < row["clean_correct"]
    assert row["backwards_per_example"] == 0
    assert row["forwards_per_example"] > 2


class Normalised(nn.Module):
    """Scores beside features, from a net whose answers depend on its mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.net = nn.BatchNorm2d(1), nn.Dropout(0.5), net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.drop(self.norm(x))
        return self.net(features), features


def test_a_net_in_training_mode_is_queried_in_evaluation_mode_where_its_output_is_selected(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net = Normalised(lenet).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    few, asked = (digits[0][:12], digits[1][:12]), {"attack": "noise", "access": "scores"}
    found = evaluate(net, few, **asked, output=0).records  # type: ignore[arg-type]
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    expected = evaluate(net.eval(), few, **asked, output=0).records  # type: ignore[arg-type]
    assert found["clean_pred"].tolist() == net(few[0])[0].argmax(1).tolist()
    assert found["adv_pred"].tolist() == expected["adv_pred"].tolist()
