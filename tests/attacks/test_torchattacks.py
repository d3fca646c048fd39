"""Every class of the library through the adapter, on small real models.

The models' parameters are frozen, as the harness freezes them before it attacks.
"""

import dataclasses
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.attacks.adapters import torchattacks as adapter
from bench.core import rng
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import ContractError, SuiteError
from bench.core.registry import find
from bench.datasets import digits
from bench.engine.functional.norms import norm_of
from bench.models import lenet

EPS: dict[Norm, float] = {"linf": 0.1, "l2": 1.0, "l1": 10.0, "l0": 20.0}
SMALL: dict[str, dict[str, Any]] = {
    "AutoAttack": {"version": "rand"},
    "APGDT": {"n_classes": 4},
    "EADL1": {"max_iterations": 10},
    "EADEN": {"max_iterations": 10},
    "JSMA": {"gamma": 0.01},
    "OnePixel": {"steps": 2},
    "Pixle": {"restarts": 1},
    "SPSA": {"nb_sample": 8, "nb_iter": 2},
    "DeepFool": {"steps": 10},
    "SparseFool": {"steps": 3},
    "Square": {"n_queries": 20},
}
CASES = [
    (name, norm, goal)
    for name, row in adapter.TABLE.items()
    for norm in row.norms
    for goal in (("untargeted",) if row.away_only else ("untargeted", "targeted"))
]
WEIGHTS = Path(lenet.__file__).parent / "weights" / "lenet-digits.safetensors"
LEAVES_BOX = ("EADL1", "EADEN")
"""Known: they step on the clean image itself and then end a little outside the box."""


def frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def grey() -> tuple[nn.Module, Tensor, Tensor]:
    model = lenet.build()
    model.load_state_dict(load_file(WEIGHTS))
    data = digits.load(limit=3)
    assert data.labels is not None
    return frozen(model), data.read(0, 3), data.labels


@pytest.fixture(scope="module")
def colour() -> tuple[nn.Module, Tensor, Tensor]:
    with rng.seed_global("a small net for colour images"):
        layers = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(294, 10)
        model, x = frozen(nn.Sequential(*layers)), torch.rand(4, 3, 16, 16)
    return model, x, model(x).argmax(1)


def attacked(
    name: str, batch: tuple[nn.Module, Tensor, Tensor], threat: Threat, **settings: Any
) -> Tensor:
    """The attack's answer, with the global generators seeded as the harness seeds them."""
    model, x, y = batch
    attack = adapter.adapt(name)
    noise = rng.Noise(0, name, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.int64))
    params = attack.params(**(SMALL.get(name, {}) | settings))
    assert isinstance(attack, ExternalAttack)
    with rng.seed_global(0, name):
        return attack.run(model, x, y, threat, params, noise)


@pytest.mark.parametrize(("name", "norm", "goal"), CASES)
def test_every_class_keeps_its_promise(name: str, norm: Norm, goal: Any, request: Any) -> None:
    row = adapter.TABLE[name]
    batch = request.getfixturevalue("grey" if row.channels is None else "colour")
    model, x, y = batch
    before, target = x.clone(), (y + 1) % 10 if goal == "targeted" else y
    threat = Threat(norm=norm, eps=EPS[norm], goal=goal)
    x_adv = attacked(name, (model, x, target), threat)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert x_adv.isfinite().all()
    assert not x_adv.requires_grad
    assert torch.equal(x, before)
    slack = 1e-4 if name in LEAVES_BOX else 1e-6
    assert x_adv.min() >= -slack
    assert x_adv.max() <= 1 + slack
    assert row.minimum or norm_of(x_adv - x, norm).max() <= threat.eps + 1e-6 + 1e-5 * threat.eps
    assert torch.equal(x_adv, attacked(name, (model, x, target), threat))


def test_the_table_covers_exactly_the_library() -> None:
    import torchattacks

    assert set(adapter.TABLE) | set(adapter.REFUSED) == set(torchattacks.__all__)
    assert not set(adapter.TABLE) & set(adapter.REFUSED)


@pytest.mark.parametrize("name", adapter.TABLE)
def test_the_goals_are_those_the_library_supports(name: str, grey: Any) -> None:
    supported = adapter._class(name)(grey[0]).supported_mode
    wrong_in_the_library = ("FAB", "PIFGSMPP")
    expected = "targeted" in supported and name not in wrong_in_the_library
    assert ("targeted" in adapter.adapt(name).goals) == expected


@pytest.mark.parametrize("name", ["FAB", "PIFGSMPP"])
def test_the_targeted_modes_left_out_do_not_reach_their_targets(name: str, colour: Any) -> None:
    model, x, y = colour
    target = (y + 1) % 10
    x_adv = attacked(name, (model, x, target), Threat(norm="linf", eps=0.1, goal="targeted"))
    assert (model(x_adv).argmax(1) != target).all()


@pytest.mark.parametrize("name", adapter.TABLE)
def test_params_default_to_the_library_and_survive_a_suite_and_a_process(name: str) -> None:
    attack = find("attacks", f"torchattacks:{name}")
    params = attack.params()
    theirs = adapter._signature(name)
    for item in dataclasses.fields(params):
        if item.name in theirs and item.name != "seed":
            assert getattr(params, item.name) == theirs[item.name]
    text = json.dumps(dataclasses.asdict(params))
    assert TypeAdapter(attack.params).validate_json(text, strict=True) == params
    assert pickle.loads(pickle.dumps(params)) == params
    pickle.dumps(attack)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PGD", {"steps": 0}),
        ("PGD", {"steps": 2.0}),
        ("PGD", {"alpha": "eps plus"}),
        ("PGD", {"random_start": 1}),
        ("APGD", {"loss": "margin"}),
        ("EADL1", {"max_iterations": 9}),
        ("PIFGSM", {"steps": 4, "num_iter_set": 5}),
    ],
)
def test_a_setting_out_of_its_domain_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(adapter.adapt(name).params).validate_json(json.dumps(settings), strict=True)


def test_our_words_mean_the_same_as_the_librarys() -> None:
    params = adapter.adapt("PIFGSM").params
    assert params(steps=4) == params(num_iter_set=4) != params()
    assert adapter.adapt("SPSA").params(steps=3).nb_iter == 3
    assert adapter.adapt("APGD").params(restarts=2).n_restarts == 2
    with pytest.raises(ValueError, match="'restarts' and 'n_restarts' are the same thing"):
        adapter.adapt("APGD").params(restarts=2, n_restarts=3)


def test_a_step_size_may_be_a_fraction_of_eps(colour: Any) -> None:
    for text, moved in (("eps/10", 0.03), ("0.5*eps", 0.15), ("0.3*eps/steps", 0.03)):
        threat = Threat(norm="linf", eps=0.3)
        x_adv = attacked("BIM", colour, threat, alpha=text, steps=3)
        inner = (colour[1] > 0.45) & (colour[1] < 0.55)  # far from the box's walls
        once = attacked("BIM", colour, threat, alpha=moved, steps=3)
        assert torch.allclose(x_adv[inner], once[inner])


def test_a_minimum_attack_does_not_look_at_eps(grey: Any) -> None:
    small, large = Threat(norm="l2", eps=0.01), Threat(norm="l2", eps=9.0)
    assert torch.equal(attacked("CW", grey, small), attacked("CW", grey, large))


def test_an_unknown_name_gets_the_nearest_known_one() -> None:
    with pytest.raises(SuiteError, match="'torchattacks:PGDL' is unknown; did you mean 'PGDL2'"):
        find("attacks", "torchattacks:PGDL")


@pytest.mark.parametrize(("name", "reason"), adapter.REFUSED.items())
def test_a_refusal_states_its_reason(name: str, reason: str) -> None:
    with pytest.raises(SuiteError, match="cannot be used here") as refusal:
        adapter.adapt(name)
    assert reason in str(refusal.value)


def test_a_targeted_dlr_loss_is_refused_rather_than_counted_as_robust(grey: Any) -> None:
    with pytest.raises(ContractError, match="'dlr' is 0 everywhere"):
        attacked("UPGD", grey, Threat(norm="linf", eps=0.1, goal="targeted"), loss="dlr")


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str], colour: Any) -> None:
    _, x, y = colour
    model = nn.Flatten()  # without parameters: the library complains on stdout
    attacked("FGSM", (model, x, y), Threat(norm="linf", eps=0.1, goal="targeted"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["AutoAttack", "APGD", "Square", "FAB"])
def test_the_seed_comes_from_the_suite_unless_the_user_sets_one(name: str, grey: Any) -> None:
    noise = rng.Noise(7, "purpose", torch.arange(4), torch.zeros(4, dtype=torch.int64))
    attack, threat = adapter.adapt(name), Threat(norm="l2", eps=1.0)
    chosen = dict(adapter._arguments(name, threat, attack.params(), noise, 10))
    assert (chosen["seed"], chosen["norm"], chosen["eps"]) == (noise.seed, "L2", 1.0)
    kept = dict(adapter._arguments(name, threat, attack.params(seed=3), noise, 10))
    assert kept["seed"] == 3


def test_n_classes_never_exceeds_the_models() -> None:
    model = frozen(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    x = torch.rand(4, 3, 2, 2)
    x_adv = attacked("APGDT", (model, x, model(x).argmax(1)), Threat(norm="linf", eps=0.9))
    assert x_adv.shape == x.shape
    wide = attacked(
        "APGDT", (model, x, model(x).argmax(1)), Threat(norm="linf", eps=0.9), n_classes=10
    )
    assert torch.equal(x_adv, wide)


def test_one_object_broken_by_an_exception_does_not_reach_the_next_call(grey: Any) -> None:
    model, x, y = grey
    threat = Threat(norm="linf", eps=0.1)
    before = attacked("PGD", grey, threat)
    with pytest.raises(RuntimeError):
        attacked("PGD", (model, x[:, :, :9, :9], y), threat)
    assert torch.equal(attacked("PGD", grey, threat), before)


def test_pixle_gets_one_image_at_a_time_where_it_must(grey: Any) -> None:
    x_adv = attacked("Pixle", grey, Threat(norm="l0", eps=9.0), update_each_iteration=True)
    assert x_adv.shape == grey[1].shape


def test_deepfools_nan_is_handed_on_and_not_repaired() -> None:
    flat = frozen(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    nn.init.zeros_(flat[1].weight)
    nn.init.constant_(flat[1].bias, 0.0)
    x, y = torch.rand(2, 3, 2, 2), torch.zeros(2, dtype=torch.int64)
    assert attacked("DeepFool", (flat, x, y), Threat(norm="l2", eps=1.0)).isnan().any()


@pytest.mark.parametrize("name", LEAVES_BOX)
def test_ead_still_leaves_the_box_as_its_caveat_says(name: str, grey: Any) -> None:
    threat = Threat(norm="l1", eps=10.0)
    x_adv = attacked(name, grey, threat, max_iterations=20)
    assert (x_adv - x_adv.clamp(0, 1)).abs().max() > 1e-6
    small = attacked(name, grey, threat, max_iterations=20, initial_const=1e-5)
    assert (small - small.clamp(0, 1)).abs().max() <= 1e-6


def test_cw_moves_no_pixel_that_is_exactly_0_or_1_as_its_caveat_says(grey: Any) -> None:
    x_adv, x = attacked("CW", grey, Threat(norm="l2", eps=1.0)), grey[1]
    walls = (x == 0) | (x == 1)
    assert torch.equal(x_adv[walls], x[walls])
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("name", ["MIFGSM", "UPGD", "DIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM"])
def test_a_zero_gradient_freezes_an_image_as_its_caveat_says(name: str, colour: Any) -> None:
    _, x, y = colour
    flat = frozen(nn.Sequential(nn.Conv2d(3, 10, 16), nn.ReLU(), nn.Flatten()))
    nn.init.constant_(flat[0].bias, -1e9)  # the ReLU is shut: logits and gradients are 0
    assert torch.equal(attacked(name, (flat, x, y), Threat(norm="linf", eps=0.1)), x)


def test_traits_name_what_a_cross_check_compares() -> None:
    pgd, fgsm, mim = (adapter.adapt(name) for name in ("PGD", "FGSM", "MIFGSM"))
    result = pgd.traits(pgd.params(alpha="eps/10", steps=40), "linf", 0.3)
    assert result["start"] == "uniform in the ball"
    assert (result["steps"], result["alpha"], result["stop"]) == ("40", "0.03", "never")
    assert pgd.traits(pgd.params(random_start=False), "linf", 0.3)["start"] == "clean"
    assert fgsm.traits(fgsm.params(), "linf", 0.3)["alpha"] == "0.3"
    assert mim.traits(mim.params(), "linf", 0.3)["momentum"] == "mu=1, gradient over mean |g|"


@pytest.mark.parametrize("name", adapter.TABLE)
def test_traits_and_caveats_are_text_for_every_class(name: str) -> None:
    attack = adapter.adapt(name)
    for norm in attack.norms:
        assert all(isinstance(v, str) for v in attack.traits(attack.params(), norm, 1.0).values())
        assert all(text.endswith(".") for text in attack.caveats(attack.params(), norm, 1.0))


def test_a_caveat_says_that_the_steps_do_not_reach_eps() -> None:
    bim = adapter.adapt("BIM")
    assert any("does not reach eps" in text for text in bim.caveats(bim.params(), "linf", 0.3))
    assert not bim.caveats(bim.params(alpha="eps/10"), "linf", 0.3)


def test_the_module_alone_does_not_import_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)  # an import of it now raises
    spec = importlib.util.spec_from_file_location("adapter_again", adapter.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.TABLE.keys() == adapter.TABLE.keys()
    assert "library 'torchattacks' is not installed" in module.adapt("PGD").unavailable


@pytest.mark.slow
def test_the_whole_autoattack_runs(grey: Any) -> None:
    model, x, y = grey
    batch, threat = (model, x[:2], y[:2]), Threat(norm="linf", eps=0.3)
    x_adv = attacked("AutoAttack", batch, threat, version="standard")
    assert norm_of(x_adv - x[:2], "linf").max() <= 0.3 + 1e-5
    assert torch.equal(x_adv, attacked("AutoAttack", batch, threat, version="standard"))
