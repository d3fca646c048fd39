"""A model that cannot be examined, timed or asked fails its own cells, and no other's."""

from pathlib import Path

import pytest
from command_line import type_command

from bench.analysis import results
from bench.storage import reader

MODELS = '''
import torch
from torch import nn

from bench.models import lenet


class Secret(nn.Module):
    """Shows nobody its weights."""

    def __init__(self):
        super().__init__()
        self.net = lenet.MODEL.build()

    def forward(self, x):
        return self.net(x)

    def state_dict(self, *args, **kwargs):
        raise GeneratorExit("weights are [b]secret[/b]")


class Small(Secret):
    """Takes few images at once."""

    def forward(self, x):
        if len(x) > 60:
            raise BaseException("\\x1b[2Jtoo many")
        return self.net(x)

    def state_dict(self, *args, **kwargs):
        return nn.Module.state_dict(self, *args, **kwargs)


def quantised():
    net = lenet.MODEL.build().eval()
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)
'''
SUITE = """
schema = 1
name = "unfit"
certify = ["ibp"]
[data]
name = "digits"
limit = 12
[[models]]
name = "models.py:Secret"
label = "secret[/x]"
[[models]]
name = "models.py:Small"
label = "small"
[[models]]
name = "lenet"
weights = "digits"
label = "sound"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0, 0.1]
[[attacks]]
name = "fgsm"
label = "moved"
norm = "linf"
eps = [0.1]
source = "small"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "s.toml").write_text(SUITE, encoding="utf-8")
    return tmp_path


def run(place: Path) -> tuple[int, str]:
    """Passes are of 64 rows, more than `Small` takes."""
    return type_command(
        "run", str(place / "s.toml"), "--out", str(place / "out"), "--device", "cpu",
        "--batch-size", "64",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_cells_of_unfit_models_fail_alone_and_in_one_sentence(place: Path) -> None:
    code, output = run(place)
    assert code == 1
    table = results.read_results(place / "out").table.set_index(["model", "attack", "eps"])
    ok = {"sound": ["fgsm"]}
    for (model, attack, _), row in table.iterrows():
        assert row["status"] == ("ok" if attack in ok.get(model, ()) else "failed"), row["reason"]
    secret = table.loc[("secret[/x]", "fgsm", 0.1), "reason"]
    assert secret.startswith("model 'secret[/x]' could not be made ready: GeneratorExit: weights")
    assert "[b]secret[/b]" in secret
    small = table.loc[("sound", "moved from small", 0.1), "reason"]
    assert "model 'small' could not be timed: BaseException: \\x1b[2Jtoo many" in small
    assert "secret[/x] · fgsm" in output
    # A model that is mended leaves no note of its failures behind.
    mended = MODELS.replace('raise GeneratorExit("weights are [b]secret[/b]")', "return {}")
    mended = mended.replace("len(x) > 60", "False")
    (place / "mended.py").write_text(mended, encoding="utf-8")
    (place / "s.toml").write_text(SUITE.replace("models.py", "mended.py"), encoding="utf-8")
    assert run(place)[0] == 0
    assert not reader.read_failures(place / "out")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantised_net_is_attacked_by_scores(place: Path) -> None:
    text = SUITE.replace('"models.py:Small"', '"models.py:quantised"').replace('"fgsm"', '"noise"')
    (place / "s.toml").write_text(text.replace('certify = ["ibp"]', ""), encoding="utf-8")
    assert run(place)[0] == 1
    table = results.read_results(place / "out").table.set_index("model")
    assert (table.loc["small", "status"] == "ok").all()
    assert (table.loc["secret[/x]", "status"] == "failed").all()
