"""Suites: what a good one parses to, and that every mistake of a bad one is told at once."""

import dataclasses
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.attacks import pgd
from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.suite import catalog, reader

GOOD = """
schema = 1
name = "small"
seed = 3
sweep = "nested"

[data]
name = "digits"
limit = 60

[[models]]
name = "lenet"
weights = "digits"

[[attacks]]
name = "pgd"
label = "ours"
norm = "linf"
eps = [0, 0.1, "8/255"]
stop = "never"
params = { steps = 4, alpha = "eps/4" }

[[attacks]]
name = "torchattacks:PGD"
label = "theirs"
norm = "linf"
eps = [0.1]
goal = "targeted"
target = "next"

[[attacks]]
name = "fgsm"
norm = "l2"
eps = [2]

[[crosschecks]]
ours = "ours"
reference = "ours"
"""


def parse(text: str, base: Path = Path()) -> reader.Suite:
    return reader.parse_suite(text, "my.toml", base)


def problems(text: str) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        parse(text)
    return list(caught.value.problems)


def problem(text: str) -> str:
    """The one sentence that is wrong with `text`."""
    (only,) = problems(text)
    return only


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


# ------------------------------------------------------------------------------------- a good suite


def test_a_good_suite_parses_to_typed_values_with_defaults_filled_in() -> None:
    read = parse(GOOD)
    ours, theirs, single = read.attacks
    assert (read.name, read.title, read.seed, read.sweep) == ("small", "small", 3, "nested")
    assert read.data == reader.DataEntry(name="digits", split="test", limit=60, params={})
    assert read.models[0].label == "lenet"
    assert ours.params == pgd.Params(steps=4, alpha="eps/4")
    assert (ours.stop, theirs.stop) == ("never", "first-success")
    assert (theirs.goal, theirs.target) == ("targeted", "next")
    assert single.label == "fgsm"
    assert read.crosschecks == (reader.Crosscheck(ours="ours", reference="ours"),)


def test_eps_are_numbers_that_remember_how_they_were_written() -> None:
    eps = parse(GOOD).attacks[0].eps
    assert eps == (reader.Eps(0.0, "0"), reader.Eps(0.1, "0.1"), reader.Eps(8 / 255, "8/255"))


def test_a_suite_cannot_be_changed() -> None:
    read = parse(GOOD)
    for value, field in ((read, "name"), (read.models[0], "label"), (read.attacks[0], "norm")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, "other")


def test_the_stop_rule_of_the_suite_holds_where_an_attack_says_nothing() -> None:
    read = parse(changed("seed = 3", 'stop = "never"'))
    assert [entry.stop for entry in read.attacks] == ["never", "never", "never"]


def test_every_shipped_suite_parses_by_its_bare_name_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "mnist", "imagenet"} <= set(catalog.list_suites())
    for name in catalog.list_suites():
        assert reader.read_suite(name).name == name


def test_a_file_in_the_working_folder_wins_over_a_shipped_suite_only_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.toml").write_text(GOOD, encoding="utf-8")
    assert reader.read_suite("quickstart").name == "quickstart"
    assert reader.read_suite("quickstart.toml").name == "small"


def test_file_names_in_a_suite_start_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make(width=3): ...", encoding="utf-8")
    path = tmp_path / "mine.toml"
    text = changed('"lenet"', '"net.py:make"').replace('weights = "digits"', "")
    path.write_text(text, encoding="utf-8")
    read = reader.read_suite(str(path))
    assert read.base == tmp_path
    assert (read.models[0].label, read.models[0].weights) == ("net.py:make", None)


# ---------------------------------------------------------------------------- all mistakes at once

NASTY = """
schema = 1
name = "nasty"
tilte = "a typo"
seed = "zero"
stop = "sometimes"

[data]
name = "digitz"
limit = 0

[[models]]
name = "lenett"
weigths = "digits"

[[models]]
name = "lenet"
label = "twin"
weights = 3

[[models]]
name = "lenet"
label = "twin"
weights = "digits"

[[models]]
name = "dropout_cnn"
label = "twin"
weights = "mnist"
params = { width = 3 }

[[attacks]]
name = "pdg"
label = "never built"
norm = "linf"
eps = [0.1]

[[attacks]]
name = "pgd"
norm = "linf"
eps = [-0.1, 1.5, 0.1, "1/10", "8/0", "many"]
params = { steps = 0, alfa = 0.1, alpha = "eps:10", restarts = 2.5 }

[[attacks]]
name = "fgsm"
norm = "l1"
eps = [0.1]
goal = "targeted"

[[attacks]]
name = "bim"
label = "BIM"
norm = "lindf"
eps = 0.1

[[attacks]]
name = "mifgsm"
label = "BIM"
norm = "l2"
eps = [0.5]
target = 3
batch_size = 0

[[attacks]]
name = "mifgsm"
label = "BIM"
norm = "l2"
eps = []

[[crosschecks]]
ours = "BIMM"
reference = "never built"
"""

EXPECTED = {
    "tilte": ("unknown key", "did you mean 'title'"),
    "seed": ("valid integer", "got 'zero'"),
    "stop": ("'first-success' or 'never'", "got 'sometimes'"),
    "data.name": ("'digitz' is unknown", "did you mean 'digits'"),
    "data.limit": ("at least 1", "got 0"),
    "models[0].name": ("'lenett' is unknown", "did you mean 'lenet'"),
    "models[0].weigths": ("unknown key", "did you mean 'weights'"),
    "models[1].weights": ("valid string", "got 3"),
    "models[3].params.width": ("unknown parameter", "known: dropout"),
    "models": ("each label once", "got 'twin' 2 times"),
    "attacks[0].name": ("'pdg' is unknown", "did you mean 'pgd'"),
    "attacks[1].eps[0]": ("in [0, 1] for linf", "got -0.1"),
    "attacks[1].eps[1]": ("in [0, 1] for linf", "got 1.5"),
    "attacks[1].eps[3]": ("each eps once", "got 1/10 again"),
    "attacks[1].eps[4]": ("a fraction such as '8/255'", "got '8/0'"),
    "attacks[1].eps[5]": ("a fraction such as '8/255'", "got 'many'"),
    "attacks[1].params.steps": ("expected at least 1", "got 0"),
    "attacks[1].params.alfa": ("unknown key", "did you mean 'alpha'"),
    "attacks[1].params.alpha": ("a share of eps such as 'eps/10'", "got 'eps:10'"),
    "attacks[1].params.restarts": ("valid integer", "got 2.5"),
    "attacks[2].norm": ("no norm 'l1'", "it has linf, l2"),
    "attacks[2].target": ("next, complement, random, least-likely", "got nothing"),
    "attacks[3].norm": ("'linf', 'l2', 'l1', 'l0'", "got 'lindf'"),
    "attacks[3].eps": ("valid list", "got 0.1"),
    "attacks[4].target": ("goal = 'targeted'", "got untargeted"),
    "attacks[4].batch_size": ("at least 1", "got 0"),
    "attacks[5].eps": ("at least one eps", "got an empty list"),
    "attacks": ("each label once", "got 'BIM' 3 times"),
    "crosschecks[0].ours": ("no attack has the label 'BIMM'", "did you mean 'BIM'"),
}


def test_all_mistakes_of_a_nasty_suite_are_reported_at_once() -> None:
    result = [sentence.split(": ", 2) for sentence in problems(NASTY)]
    assert all(where == "my.toml" for where, _, _ in result)
    assert sorted(key for _, key, _ in result) == sorted(EXPECTED)


@pytest.mark.parametrize("key", EXPECTED)
def test_every_mistake_names_its_key_what_was_expected_and_what_was_got(key: str) -> None:
    (sentence,) = [s for s in problems(NASTY) if s.startswith(f"my.toml: {key}: ")]
    for part in EXPECTED[key]:
        assert part in sentence
    assert "\n" not in sentence


def test_the_mistakes_come_in_the_same_order_every_time() -> None:
    text = changed('name = "small"', 'name = "small"\nzeta = 1\nalpha = 2\nmiddle = 3')
    keys = [sentence.split(": ")[1] for sentence in problems(text)]
    assert keys == ["zeta", "alpha", "middle"]


# ---------------------------------------------------------------------------------- one at a time


@pytest.mark.parametrize(
    ("eps", "part"),
    [
        ("[nan]", "in [0, 1] for linf, got nan"),
        ("[inf]", "in [0, 1] for linf, got inf"),
        ('["1e999999999"]', "in [0, 1] for linf, got 1e999999999"),
        ('["8/"]', "a number or a fraction such as '8/255', got '8/'"),
        ('[""]', "a number or a fraction such as '8/255', got ''"),
        ("[true]", "got [True]"),
        ("[[0.1]]", "got [[0.1]]"),
    ],
)
def test_an_eps_that_is_no_radius_is_a_mistake(eps: str, part: str) -> None:
    text = problem(changed('[0, 0.1, "8/255"]', eps))
    assert "attacks[0].eps" in text
    assert part in text


def test_an_l2_radius_may_be_above_1_but_not_infinite() -> None:
    assert parse(GOOD).attacks[2].eps[0].value == 2
    assert "at least 0 for l2, got inf" in problem(changed("eps = [2]", "eps = [inf]"))


@pytest.mark.parametrize(
    "alpha", ["eps/", "eps/0", "steps*eps", "1.2.3*eps", "-1*eps", "0*eps", "eps/steps/2", ""]
)
def test_a_step_size_that_is_no_fraction_of_eps_is_a_mistake(alpha: str) -> None:
    sentence = problem(changed('alpha = "eps/4"', f'alpha = "{alpha}"'))
    assert sentence.startswith("my.toml: attacks[0].params.alpha: ")
    assert sentence.endswith(f"got '{alpha}'")


@pytest.mark.parametrize("length", ["0.01", '"2/255"', '"0.5/255"', '"0.01"'])
@pytest.mark.parametrize(
    ("attack", "norm", "name"), [("pgd", "linf", "alpha"), ("ddn", "l2", "start")]
)
def test_every_length_is_read_as_eps_is(length: str, attack: str, norm: str, name: str) -> None:
    entry = f'[[attacks]]\nname = "{attack}"\nnorm = "{norm}"\neps = [{length}]\n'
    text = f'{GOOD}\n{entry}label = "own"\nparams = {{ {name} = {length} }}\n'
    own = parse(text).attacks[-1]
    assert getattr(own.params, name) == own.eps[0].value
    sentence = problem(text.replace(f"{name} = {length}", f'{name} = "2:255"'))
    assert "a fraction such as" in sentence


@pytest.mark.parametrize("alpha", ["0.01", '"eps/10"', '"2.5*eps/steps"', '"eps"', '" 2 * eps "'])
def test_a_step_size_is_a_number_or_a_fraction_of_eps(alpha: str) -> None:
    read = parse(changed('alpha = "eps/4"', f"alpha = {alpha}"))
    assert read.attacks[0].params.alpha == tomllib.loads(f"a = {alpha}")["a"]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("schema = 1", "schema = 2", "schema: expected 1, got 2"),
        ("schema = 1", "", "schema: expected a value, got nothing"),
        ('name = "small"', "", "name: expected a value, got nothing"),
        ("seed = 3", "seed = 1.5", "seed: "),
        ("seed = 3", "seed = true", "seed: "),
        ("limit = 60", "limit = -1", "data.limit: expected at least 1, got -1"),
        ("limit = 60", "params = { size = 3 }", ""),
        ('label = "theirs"', 'label = " "', "attacks[1].label: expected a name, got ' '"),
        (
            "seed = 3",
            'seed = 3\ncorruption_baseline = "lenet"',
            'corruption_baseline: expected an attack with norm = "corruption"',
        ),
        ('label = "theirs"', 'label = "ours"', "each label once, got 'ours' 2 times"),
        ("params = { steps = 4", "params = { step = 4", "did you mean 'steps'? known: "),
        ('target = "next"', "target = 1.5", "attacks[1].target: "),
        ('reference = "ours"', 'reference = "their"', "did you mean 'theirs'"),
        ('reference = "ours"', 'reference = "fgsm"', "same norm, goal and target"),
        ('reference = "ours"', 'reference = "theirs"', "same norm, goal and target"),
        ('reference = "ours"', "", "crosschecks[0].reference: expected a value, got nothing"),
        ('reference = "ours"', "reference = 3", "crosschecks[0].reference: "),
        ('"torchattacks:PGD"', '"torchattacks:PDG"', "did you mean 'PGD'"),
        ('"torchattacks:PGD"', '"torchattacks:MultiAttack"', "cannot be used here"),
        ('"torchattacks:PGD"', '"torchattacks:APGD"', "no goal 'targeted'"),
        ('"lenet"', '"bench.models.lenet:SUMMARY"', "'SUMMARY' is not defined there"),
        ('"lenet"', '"bench.models.lenet:__doc__"', "expected a Model or a factory, got str"),
        ('"digits"\nlimit', '"bench.datasets.digits:TEST"\nlimit', "a Dataset or a factory"),
        ('"fgsm"', '"bench.attacks.fgsm:Params"', "expected a bench Attack, got type"),
    ],
)
def test_a_single_mistake_is_a_single_sentence(old: str, new: str, part: str) -> None:
    text = changed(old, new)
    if not part:
        assert parse(text).data.params == {"size": 3}  # a data set that takes anything
        return
    assert part in problem(text)


def test_a_crosscheck_needs_an_eps_that_both_sides_have() -> None:
    text = changed('goal = "targeted"\ntarget = "next"\n', "").replace("eps = [0.1]", "eps = [0.3]")
    sentence = problem(text.replace('reference = "ours"', 'reference = "theirs"'))
    assert "crosschecks[0]: expected an eps that both sides have, got none" in sentence


@pytest.mark.parametrize("section", ["models", "attacks"])
def test_a_suite_without_models_or_attacks_is_a_mistake(section: str) -> None:
    kept = [p for p in GOOD.split("\n\n") if not p.lstrip().startswith(f"[[{section}]]")]
    text = "\n\n".join(p for p in kept if "crosschecks" not in p)
    assert f"my.toml: {section}: expected" in problem(text)


def test_sections_of_the_wrong_shape_are_mistakes() -> None:
    sentences = problems('schema = 1\nname = "x"\ndata = 3\nmodels = "lenet"\nattacks = [1, "pgd"]')
    keys = [sentence.split(": ")[1] for sentence in sentences]
    assert sorted(keys) == ["attacks[0]", "attacks[1]", "data", "models"]


def test_a_librarys_attack_takes_the_librarys_parameters() -> None:
    read = parse(
        changed('target = "next"', 'target = "next"\nparams = { steps = 7, random_start = false }')
    )
    assert (read.attacks[1].params.steps, read.attacks[1].params.random_start) == (7, False)
    assert read.attacks[1].params.alpha == pytest.approx(2 / 255)


# ---------------------------------------------------------------------------------- files


def refusal_of(name: str) -> str:
    with pytest.raises(SuiteError) as caught:
        reader.read_suite(name)
    (only,) = caught.value.problems
    return only


def test_an_unknown_bare_name_is_reported_with_the_nearest_shipped_suite() -> None:
    sentence = refusal_of("quikstart")
    assert "suite 'quikstart' is neither a file nor shipped; did you mean 'quickstart'?" in sentence


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_one_sentence_each(
    tmp_path: Path,
) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes('name = "caf\xe9"'.encode("latin-1"))
    assert "neither a file nor shipped" in refusal_of(str(tmp_path / "absent.toml"))
    assert "could not be read as a suite" in refusal_of(str(tmp_path))
    assert "could not be read as a suite" in refusal_of(str(latin))


def test_toml_that_does_not_parse_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text('schema = 1\nname = "x\n', encoding="utf-8")
    sentence = refusal_of(str(path))
    assert str(path) in sentence
    assert "not valid TOML" in sentence
    assert "line 2" in sentence


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", ".hidden", "two words\n"])
def test_a_suites_name_must_be_fit_for_a_folder_because_it_becomes_one(name: str) -> None:
    sentence = problem(changed('name = "small"', f"name = {name!r}".replace("'", '"')))
    assert sentence.startswith("my.toml: name: expected letters, digits, ")


def test_one_attack_outside_any_suite_is_checked_the_same_way() -> None:
    with pytest.raises(SuiteError) as caught:
        reader.parse_attack({"name": "pgd", "norm": "l0", "eps": [2], "params": {"x": 1}}, "here")
    assert len(caught.value.problems) == 2
    assert all(sentence.startswith("here: ") for sentence in caught.value.problems)


# ---------------------------------------------------------------------------------- anything at all

words = st.sampled_from(
    [
        "pgd", "fgsm", "lenet", "digits", "linf", "l2", "targeted", "next", "never", "eps/10", "",
        "8/255", "1/0", "eps/0", "torchattacks:", "torchattacks:PGD", "torchattacks:CW", ":", "a:b",
        "pgd:ATTACK", ":x", ".py:x", "x.py:y", "builtins:dict", "..:x", "bench:run", "\0.py:x",
        "imagenet", "lenet:MODEL", ".:x", "1e999", "-1", "math:pi",
    ]
)  # fmt: skip
scalars = st.one_of(words, st.integers(-3, 300), st.floats(), st.booleans(), st.text(max_size=5))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["steps", "alpha", "loss", "restarts", "x"]), inner),
    ),
    max_leaves=4,
)


def table(**likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Tables whose keys mostly hold what they should, and often do not."""
    keys = {key: st.one_of(strategy, strategy, values) for key, strategy in likely.items()}
    return st.fixed_dictionaries({}, optional={**keys, "odd": values})


entry = {"label": words, "params": st.dictionaries(words, values, max_size=2)}
attacks = table(
    name=words, norm=words, eps=st.lists(scalars, max_size=3), goal=words, target=scalars,
    stop=words, **entry,
)  # fmt: skip
suites = table(
    schema=st.just(1),
    name=words,
    seed=st.integers(),
    data=table(name=words, limit=st.integers(), params=st.just({})),
    models=st.lists(table(name=words, weights=words, **entry), max_size=2),
    attacks=st.lists(attacks, max_size=3),
    crosschecks=st.lists(table(ours=words, reference=words), max_size=2),
)


@settings(max_examples=400, deadline=None)
@given(suites)
def test_any_toml_is_a_suite_or_a_suite_error(raw: dict[str, Any]) -> None:
    check = Validator("my.toml")
    read = reader.check_suite(check, raw, "", Path())
    assert check.problems or isinstance(read, reader.Suite)
    assert all(sentence.startswith("my.toml: ") for sentence in check.problems)
    assert all("\n" not in sentence for sentence in check.problems)


# ------------------------------------------------------------------------------------------ unions

UNION = """
[[unions]]
label = "both"
threats = [{ norm = "linf", eps = "8/255" }, { norm = "l2", eps = 2.5 }]
"""
TWO_NORMS = GOOD.replace('goal = "targeted"\ntarget = "next"\n', "")


def test_a_union_has_a_label_and_its_threat_models() -> None:
    (union,) = parse(TWO_NORMS + UNION).unions
    assert union.label == "both"
    assert [(each.norm, each.eps, each.eps_text) for each in union.threats] == [
        ("linf", 8 / 255, "8/255"),
        ("l2", 2.5, "2.5"),
    ]
    assert parse(TWO_NORMS).unions == ()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('norm = "l2"', 'norm = "l22"', "my.toml: unions[0].threats[1].norm: expected"),
        ("eps = 2.5", "eps = 1.5", "my.toml: unions[0].threats[1].eps: expected an attack of the "
         "suite in l2 at an eps of at most 1.5, got 2 as the smallest"),
        ('norm = "l2"', 'norm = "l1"', "my.toml: unions[0].threats[1].norm: expected an attack of "
         "the suite in l1 at an eps of at most 2.5, got attacks in linf, l2 only"),
        ('norm = "l2"', 'norm = "linf"', "my.toml: unions[0].threats: expected each norm once, "
         "since the smaller ball lies in the larger one; got linf at 8/255, 2.5"),
        (', { norm = "l2", eps = 2.5 }', "", "my.toml: unions[0].threats: expected at least two "
         "threat models, such as { norm = 'linf', eps = '8/255' }, got 1"),
        ("eps = 2.5", "eps = 0", "my.toml: unions[0].threats[1].eps: expected a finite number "
         "above 0, got 0"),
        ("eps = 2.5", 'eps = "far"', "my.toml: unions[0].threats[1].eps: expected a number or a "
         "fraction such as '8/255', got 'far'"),
        ("eps = 2.5", "radius = 2.5", "my.toml: unions[0].threats[1].radius: unknown key"),
        ('"both"', '" "', "my.toml: unions[0].label: expected a name, got ' '"),
        ('"both"', '"all threat models"', "my.toml: unions[0].label: expected a label other than "
         "'all threat models', which every suite has, got 'all threat models'"),
        ('label = "both"\n', "", "my.toml: unions[0].label: expected a value, got nothing"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_union_is_told_in_a_sentence(old: str, new: str, sentence: str) -> None:
    assert old in UNION
    assert problems(TWO_NORMS + UNION.replace(old, new, 1))[0].startswith(sentence)


def test_two_unions_of_one_label_are_a_mistake() -> None:
    with pytest.raises(SuiteError, match="expected each label once, got 'both' 2 times"):
        parse(TWO_NORMS + UNION + UNION)


def test_a_union_needs_attacks_of_one_goal_in_all_of_its_norms() -> None:
    targeted = TWO_NORMS.replace('norm = "l2"', 'norm = "l2"\ngoal = "targeted"\ntarget = "next"')
    with pytest.raises(SuiteError, match="expected attacks of one goal in every norm, got none"):
        parse(targeted + UNION)


def test_the_norms_of_an_attack_with_a_mistake_are_not_counted_against_a_union() -> None:
    wrong = TWO_NORMS.replace('norm = "l2"', 'norm = "l22"')
    assert [text for text in problems(wrong + UNION) if "unions" in text] == []


def test_no_attack_takes_the_name_of_the_worst_case() -> None:
    raw = {"name": "pgd", "label": "worst case", "norm": "linf", "eps": [0.1]}
    with pytest.raises(SuiteError, match="label: expected a label other than 'worst case'"):
        reader.parse_attack(raw, "here")


def test_budgets_of_an_attack_whose_library_is_not_installed_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "foolbox", None)
    text = """
schema = 1
name = "s"
[data]
name = "digits"
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "noise"
norm = "l2"
eps = [1]
[[attacks]]
name = "foolbox:HopSkipJumpAttack"
norm = "l2"
eps = [1]
batch_size = 1
budgets = [10, 20]
"""
    _, entry = reader.parse_suite(text, "s.toml", Path()).attacks
    assert entry.budgets == (10, 20)
    assert "is not installed" in entry.attack.unavailable
    with pytest.raises(SuiteError, match="expected ascending numbers of queries"):
        reader.parse_suite(text.replace("[10, 20]", "[20, 10]"), "s.toml", Path())


UNUSED = """
schema = 1
name = "s"
{top}
[data]
name = "digits"
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.1]
{attack}
"""


@pytest.mark.parametrize(
    ("top", "attack", "part"),
    [
        ("budgets = [10, 20]", "", "budgets: expected an attack in a norm that asks"),
        ("", "[gate]\nfail = ['query_robust_accuracy:-1pp']", "gate: query_robust_accuracy: exp"),
        ("", "fail = ['query_robust_accuracy:-1pp']", "gate: query_robust_accuracy: expected"),
        ("", "transforms = { smallest = 0.8 }", "transforms.smallest: expected diversity above 0"),
        ("", "transforms = { smallest = 0.8, diversity = 0.0 }", "transforms.smallest: expected"),
    ],
)
def test_a_key_that_applies_to_nothing_is_a_mistake(top: str, attack: str, part: str) -> None:
    text = UNUSED.format(top=top, attack=attack)
    with pytest.raises(SuiteError, match=part):
        reader.parse_suite(text, "s.toml", Path())
    square = 'name = "square"\nlabel = "square"\nnorm = "linf"\neps = [0.1]\nbudgets = [10]\n'
    if "smallest" not in part:
        reader.parse_suite(f"{text}[[attacks]]\n{square}", "s.toml", Path())
