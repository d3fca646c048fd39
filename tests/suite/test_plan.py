"""The plan: which cells there are, which are skipped and why, and what a cell's identity holds."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench.core import registry
from bench.core.errors import SuiteError
from bench.suite import plan, reader, targets
from bench.suite.caveats import list_caveats
from bench.suite.identity import ModelFacts

FACTS = ModelFacts(
    classes=10, shape=(1, 28, 28), rows=64, model_fingerprint="m", data_fingerprint="d"
)
BATCH_OF_7, BATCH_OF_40 = {"batch_size": 7}, {"batch_size": 40}
ASKS = """
from dataclasses import dataclass
from bench import Attack

@dataclass(frozen=True, kw_only=True)
class Params:
    pass

def run(model, x, y, threat, params, noise):
    return x

ATTACK = Attack(summary="asks", source="a test", params=Params, norms=("linf",), needs="scores",
                run=run)
"""
HEAD = 'schema = 1\nname = "s"\n[data]\nname = "digits"\n'


def entry(**keys: Any) -> reader.AttackEntry:
    return reader.parse_attack({"name": "pgd", "norm": "linf", "eps": [0.1], **keys}, "test")


def cells(facts: ModelFacts = FACTS, seed: int = 0, sweep: Any = "independent", **keys: Any) -> Any:
    return plan.plan_task("net", entry(**keys), facts, seed, sweep).cells


def identity(**keys: Any) -> str:
    return cells(**keys)[0].identity


def test_a_plan_is_every_model_with_every_attack_at_every_eps() -> None:
    text = HEAD + "".join(
        f'[[models]]\nname = "{name}"\nweights = "random"\n' for name in ("lenet", "dropout_cnn")
    )
    text += '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0, 0.1]\n'
    text += '[[attacks]]\nname = "pgd"\nnorm = "l2"\neps = [1]\n'
    read = reader.parse_suite(text, "s.toml", Path())
    tasks = plan.plan_tasks(read, plan.collect_declared_facts(read))
    result = [(cell.model, cell.attack, cell.eps) for task in tasks for cell in task.cells]
    each = [("fgsm", 0.0), ("fgsm", 0.1), ("pgd", 1.0)]
    assert result == [(model, *rest) for model in ("lenet", "dropout_cnn") for rest in each]
    assert {cell.identity for task in tasks for cell in task.cells} == {""}


@pytest.mark.parametrize(
    ("name", "facts", "part"),
    [
        (
            "torchattacks:APGDT",
            FACTS._replace(classes=2),
            "needs at least 4 classes, the model has 2",
        ),
        ("torchattacks:TIFGSM", FACTS, "needs 3 channels, the images have 1"),
        ("pgd", FACTS._replace(classes=2), ""),
        ("torchattacks:APGDT", FACTS._replace(classes=None), ""),
        ("apgd_t", FACTS._replace(classes=3), "the attack needs at least 4 classes"),
        ("torchattacks:TIFGSM", FACTS._replace(shape=(3, 8, 8)), ""),
    ],
)
def test_a_pairing_that_cannot_be_is_skipped_with_its_reason(
    name: str, facts: ModelFacts, part: str
) -> None:
    (cell,) = cells(facts, name=name)
    assert part in cell.reason
    assert bool(cell.reason) == bool(part)


@pytest.mark.parametrize("goal", [{}, {"goal": "targeted", "target": "next"}])
@pytest.mark.parametrize("name", ["apgd", "pgd", "fgsm"])
def test_a_loss_that_needs_more_classes_than_there_are_is_a_reason_to_skip(
    name: str, goal: dict[str, str]
) -> None:
    least = 4 if goal else 3
    few, enough = (FACTS._replace(classes=classes) for classes in (least - 1, least))
    (cell,) = cells(few, name=name, params={"loss": "dlr"}, **goal)
    assert cell.reason == f"loss 'dlr' needs at least {least} classes, the model has {least - 1}"
    (cell,) = cells(enough, name=name, params={"loss": "dlr"}, **goal)
    assert cell.reason == ""
    (cell,) = cells(few, name=name, params={"loss": "margin"}, **goal)
    assert cell.reason == ""


# ---------------------------------------------------------------------------------------- identity

SAME = identity()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"eps": [0.2]},
        {"norm": "l2"},
        {"stop": "never"},
        {"params": {"steps": 41}},
        {"params": {"loss": "margin"}},
        {"goal": "targeted", "target": "next"},
        {"name": "bim"},
        {"sweep": "nested"},
        {"facts": FACTS._replace(model_fingerprint="other")},
        {"facts": FACTS._replace(data_fingerprint="other")},
    ],
    ids=str,
)
def test_the_identity_changes_with_everything_that_can_change_the_number(
    change: dict[str, Any],
) -> None:
    assert identity(**change) != SAME


@pytest.mark.parametrize(
    "change",
    [
        {"label": "another name"},
        {"params": {"steps": 40}},
        {"eps": ["1/10"]},
        {"eps": [0.1, 0.2]},
        {"facts": FACTS._replace(rows=7)},
        {"batch_size": 7},
    ],
    ids=str,
)
def test_the_identity_stays_with_what_cannot(change: dict[str, Any]) -> None:
    assert identity(**change) == SAME


def test_two_targets_are_two_identities() -> None:
    targets = ["next", "random", 3, "3", "least-likely"]
    result = {identity(goal="targeted", target=target) for target in targets}
    assert len(result) == 5


def test_one_gradient_and_a_nested_sweep_tie_the_other_eps_to_the_number() -> None:
    def grown(**keys: Any) -> bool:
        return identity(eps=[0.1], **keys) == identity(eps=[0.1, 0.2], **keys)

    assert grown(name="pgd")
    assert grown(name="fgsm") is False
    assert grown(name="pgd", sweep="nested") is False
    assert grown(name="torchattacks:CW", norm="l2") is False


def test_what_fools_its_source_is_crafted_anew_at_every_eps_for_another_model() -> None:
    entries = [entry(eps=[0.1, 0.2]), dataclasses.replace(entry(eps=[0.1, 0.2]), source="other")]
    other = FACTS._replace(model_fingerprint="other")
    tasks = [plan.plan_task("net", each, FACTS, 0, "nested", other) for each in entries]
    assert [task.spec.sweep for task in tasks] == ["nested", "independent"]


def test_the_batch_belongs_to_the_identity_where_the_result_depends_on_it() -> None:
    for name, same in (("torchattacks:FGSM", True), ("torchattacks:PGD", False)):
        few, many = (identity(name=name, facts=FACTS._replace(rows=rows)) for rows in (7, 64))
        assert (few == many) == same


def test_the_batch_size_of_an_entry_belongs_to_the_identity_as_that_of_the_run_does() -> None:
    sizes = [identity(name="torchattacks:PGD", **size) for size in ({}, BATCH_OF_7, BATCH_OF_40)]
    assert len(set(sizes)) == 3
    of_run = identity(name="torchattacks:PGD", facts=FACTS._replace(rows=7))
    assert of_run == sizes[1]


def test_an_entry_whose_queries_are_counted_is_no_entry_whose_queries_are_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "asks.py").write_text(ASKS)
    name = f"{tmp_path / 'asks.py'}:ATTACK"
    one, seven, none = (identity(name=name, **size) for size in ({"batch_size": 1}, BATCH_OF_7, {}))
    assert one != none
    assert seven == none


def test_the_order_of_the_classes_belongs_to_the_identity_of_an_attack_on_a_named_one() -> None:
    def identities(names: tuple[str, ...], target: str | int) -> tuple[str, bool]:
        facts = FACTS._replace(class_names=names)
        (cell,) = cells(facts, goal="targeted", target=target)
        return cell.identity, "class" in cell.settings

    assert identities(("dog", "cat"), "cat") != identities(("cat", "dog"), "cat")
    for target in ("next", 1, "1"):
        assert identities(("dog", "cat"), target) == identities(("cat", "dog"), target)
    assert identities(("0", "1"), 1) == identities((), 1)
    assert identities(("1", "0"), 1)[0] != identities((), 1)[0]


def test_the_identity_of_a_user_s_attack_changes_with_its_code_alone(tmp_path: Path) -> None:
    counts = []
    for folder, comment in (("a", ""), ("b", "# a remark\n"), ("c", "CHANGED = 1\n")):
        (tmp_path / folder).mkdir()
        source = Path(registry.find("attacks", "bim").rule.step.__code__.co_filename)
        code = source.read_text(encoding="utf-8") + comment
        (tmp_path / folder / "mine.py").write_text(code, encoding="utf-8")
        attack = registry.find("attacks", "mine.py:ATTACK", tmp_path / folder)
        mine = dataclasses.replace(entry(name="bim"), attack=attack)
        counts.append(plan.plan_task("net", mine, FACTS, 0, "independent").cells[0].identity)
    assert counts[0] == counts[1] != counts[2]


def test_other_attacks_and_titles_leave_a_cells_identity_alone() -> None:
    one = '[[models]]\nname = "lenet"\nweights = "digits"\n'
    one += '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.1]\n'
    more = '[[attacks]]\nname = "fgsm"\nnorm = "l2"\neps = [1]\n'
    counts = []
    for text in (HEAD + one, HEAD.replace('"s"', '"t"\ntitle = "T"') + one + more):
        read = reader.parse_suite(text, "s.toml", Path())
        counts.append(plan.plan_tasks(read, {"lenet": FACTS})[0].cells[0].identity)
    assert counts == [SAME, SAME]


# ------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("keys", "passes"),
    [
        ({"params": {"steps": 7, "restarts": 3}}, [21.0]),
        ({"eps": [0, 0.1], "params": {"steps": 7}}, [0.0, 7.0]),
        ({"name": "fgsm", "eps": [0, 0.1, 0.2]}, [0.0, 0.5, 0.5]),
        ({"name": "torchattacks:PGD", "params": {"steps": 5}}, [5.0]),
        ({"name": "torchattacks:FAB", "norm": "l2", "eps": [0]}, [0.0]),
    ],
)
def test_a_cells_cost_is_known_before_it_runs(keys: dict[str, Any], passes: list[float]) -> None:
    result = cells(**keys)
    assert [cell.passes for cell in result] == passes
    assert [cell.gradients for cell in result] == passes


def test_a_cost_that_only_the_library_knows_is_not_guessed() -> None:
    (cell,) = cells(name="torchattacks:Square")
    assert (cell.passes, cell.gradients) == (None, 0.0)


def test_a_task_can_be_cut_to_some_of_its_cells() -> None:
    task = plan.plan_task("net", entry(eps=[0.1, 0.2, 0.3]), FACTS, 0, "independent")
    part = task.only({task.cells[2].identity, task.cells[0].identity})
    assert [cell.eps for cell in part.cells] == [0.1, 0.3] == list(part.spec.eps)


# ----------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "expected"),
    [("next", "next"), ("complement", "complement"), (3, 3), ("3", 3), ("cat", 1), (0, 0)],
)
def test_a_target_is_a_rule_an_index_or_a_name(target: str | int, expected: str | int) -> None:
    aimed = entry(goal="targeted", target=target)
    assert targets.resolve_target(aimed, 4, ("dog", "cat", "cow", "ox")) == expected


@pytest.mark.parametrize("target", [4, -1, "kat", "-1"])
def test_a_target_that_is_no_class_is_reported(target: str | int) -> None:
    with pytest.raises(SuiteError, match="is no class; expected an index below 4 or a class name"):
        targets.resolve_target(
            entry(goal="targeted", target=target), 4, ("dog", "cat", "cow", "ox")
        )


def test_a_class_name_with_a_typo_is_reported_with_the_nearest_of_a_thousand() -> None:
    names = (*(f"thing {k}" for k in range(998)), "airliner", "airship")
    with pytest.raises(SuiteError, match=r"did you mean 'airliner'.*known: 1004 names") as error:
        targets.resolve_target(entry(goal="targeted", target="Airlinr"), 1000, names)
    assert len(str(error.value)) < 250


def test_a_class_name_is_found_in_any_case() -> None:
    assert (
        targets.resolve_target(entry(goal="targeted", target="AirLiner"), 2, ("hog", "airliner"))
        == 1
    )


def test_a_class_name_that_two_classes_have_is_refused_with_both_indices() -> None:
    names = ("crane", "hog", "crane")
    with pytest.raises(SuiteError, match="names the classes 0 and 2; give the index"):
        targets.resolve_target(entry(goal="targeted", target="crane"), 3, names)


def test_a_number_is_an_index_also_where_classes_are_named_by_numbers() -> None:
    names = ("1", "10", "2", "3")  # as a folder with a class in each subfolder is sorted
    assert targets.resolve_target(entry(goal="targeted", target=3), 4, names) == 3
    assert targets.resolve_target(entry(goal="targeted", target="2"), 4, names) == 2
    assert targets.resolve_target(entry(goal="targeted", target="10"), 4, names) == 1


def test_a_named_class_that_the_model_does_not_have_is_reported() -> None:
    aimed = entry(goal="targeted", target="cow")
    with pytest.raises(SuiteError, match="'cow' is no class; expected an index below 2"):
        targets.resolve_target(aimed, 2, ("dog", "cat", "cow"))


@pytest.mark.parametrize(("kernel", "noted"), [(7, False), (9, True)])
def test_a_kernel_that_is_larger_than_the_images_is_a_caveat(kernel: int, noted: bool) -> None:
    table = {"name": "pgd", "norm": "linf", "eps": [0.1], "transforms": {"translation": kernel}}
    facts = ModelFacts(classes=10, shape=(1, 8, 28))
    found = list_caveats(reader.parse_attack(table, "here"), 0.1, "independent", facts, facts)
    assert bool(found) is noted
    assert not noted or "has 9 pixels a side, the images have 8x28" in found[0]
