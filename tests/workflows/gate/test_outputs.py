"""What a check writes: JUnit XML, Markdown and GitHub's commands, whatever names they hold."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bench.analysis.snapshot import Snapshot
from bench.core.validation import Validator
from bench.suite import thresholds
from bench.workflows.gate import (
    check,
    github_annotations,
    grouping,
    junit,
    markdown_summary,
    sarif,
)
from bench.workflows.gate.verdicts import Check

Make = Callable[..., Snapshot]
LIMITS = thresholds.read_thresholds(Validator(""), {}, [], {})
HOSTILE = "a|b\n::error::<script>&\x00\x1b[31m]]>`%`"


def sides(make: Make, name: str = "net") -> tuple[Snapshot, Snapshot]:
    """A cell that regressed, one that could not be compared, one that is as it was, one new."""
    full, half = [True] * 100, [example < 50 for example in range(100)]
    before = make({(name, "walk", 0.1): full, (name, "walk", 0.2): half, (name, "jump", 1.0): half})
    now = make({(name, "walk", 0.1): half, (name, "walk", 0.2): half, (name, "new", 1.0): half})
    return before, now


def checked(make: Make, name: str = "net") -> Check:
    return check.check_against_baseline(*sides(make, name), LIMITS)


def page(make: Make, name: str = "net") -> str:
    return markdown_summary.render_summary(
        checked(make, name), *sides(make, name), Path("out"), Path("b.json")
    )


# -------------------------------------------------------------------------------------------- JUnit


def test_junit_counts_what_it_holds_and_has_a_case_for_each_verdict(make: Make) -> None:
    result = checked(make)
    top = ElementTree.fromstring(junit.render_junit(result, "s"))
    assert top.tag == "testsuites"
    assert top.get("tests") == str(len(result.verdicts)) == str(len(list(top.iter("testcase"))))
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    for group in (top, *top.findall("testsuite")):
        for attribute, tag in kinds.items():
            assert int(group.get(attribute, "")) == len(list(group.iter(tag))), attribute
    names = [case.get("name") for case in top.iter("testcase")]
    assert len(names) == len(set(names))


def test_junit_separates_red_from_what_could_not_be_compared(make: Make) -> None:
    top = ElementTree.fromstring(junit.render_junit(checked(make), "s"))
    children = {case.get("name"): [each.tag for each in case] for case in top.iter("testcase")}
    assert children["robust accuracy: net, walk, eps 0.1"] == ["failure"]
    assert children["robust accuracy: net, jump, eps 1"] == ["error"]
    assert children["robust accuracy: net, new, eps 1"] == ["skipped"]
    assert children["robust accuracy: net, walk, eps 0.2"] == ["system-out"]
    failure = next(top.iter("failure"))
    assert failure.get("type") == "regressed"
    assert failure.text is not None
    assert f"lost: {' '.join(map(str, range(50, 100)))}" in failure.text


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(min_size=1))
def test_junit_is_xml_with_any_model_name(make: Make, name: str) -> None:
    printable = name.encode("utf-8", "replace").decode()
    top = ElementTree.fromstring(junit.render_junit(checked(make, printable), printable))
    assert len(list(top.iter("failure"))) == 2  # the cell, and both cells together


# ----------------------------------------------------------------------------------------- Markdown


def test_the_page_names_what_is_wrong_first_and_folds_the_rest(make: Make) -> None:
    text = page(make)
    table, folded = text.index("🔴 regressed"), text.index("<details>")
    assert table < folded
    assert "not compared" in text[:folded]
    assert "No loss of fewer than" in text[:folded]
    assert "bench baseline out -o b.json" in text[:folded]
    assert "lost: 50 51 52" in text[folded:]
    assert "████" in text[folded:]
    assert text.count("<details>") == text.count("</details>") == 3
    assert "`out/report.html`" in text


def test_a_hostile_name_stays_a_name_on_the_page(make: Make) -> None:
    html = MarkdownIt("commonmark").enable("table").render(page(make, HOSTILE))
    assert "<script>" not in html
    assert html.count("<table>") == page(make).count("| verdict |") == 2
    rows = [line for line in page(make, HOSTILE).splitlines() if line.startswith("| 🔴")]
    assert len(rows) == 2


def test_five_verdicts_of_one_cause_are_one_line_that_names_them(make: Make) -> None:
    keys = [("net", attack, eps) for attack in ("walk", "jump") for eps in (0.1, 0.2)]
    before = make(dict.fromkeys(keys, [True] * 100))
    data = dataclasses.replace(before.data, fingerprint="other")
    now = dataclasses.replace(before, data=data)
    result = check.check_against_baseline(before, now, LIMITS)
    assert len(result.select("not compared")) == 5
    (group,) = grouping.group_verdicts(result.select("not compared"))
    assert group.gates == "clean accuracy, robust accuracy"
    assert group.where == "net; net, walk, eps 0.1, 0.2; net, jump, eps 0.1, 0.2"
    text = markdown_summary.render_summary(result, before, now, Path("out"), Path("b.json"))
    assert text.count("of other content") == 1
    assert "accept this run" not in text
    assert "████" not in text
    (warning,) = github_annotations.render_annotations(result)
    assert f"::{group.where}: {group.sentence}" in warning
    assert junit.render_junit(result, "s").count(b"<error") == 5


def test_verdicts_with_counts_are_never_joined(make: Make) -> None:
    keys = [("net", "walk", eps) for eps in (0.1, 0.2)]
    snap = make(dict.fromkeys(keys, [True] * 100))
    verdicts = check.check_against_baseline(snap, snap, LIMITS).verdicts
    same = [each for each in verdicts if each.eps]
    assert same[0].sentence == same[1].sentence
    assert len(grouping.group_verdicts(same)) == 2


def test_examples_that_flipped_alike_are_listed_once(make: Make) -> None:
    keys = [("net", "walk", 0.1), ("net", "jump", 0.1)]
    before = make(dict.fromkeys(keys, [True] * 100))
    half, most = ([example < k for example in range(100)] for k in (50, 80))
    now = make(dict(zip(keys, (half, most), strict=True)))
    result = check.check_against_baseline(before, now, LIMITS)
    assert len(result.select("regressed")) == 4  # both cells, their worst case, all cells
    text = markdown_summary.render_summary(result, before, now, Path("out"), Path("b.json"))
    assert text.count("lost: ") == 2


def test_a_run_with_a_cell_that_crashed_is_not_offered_for_acceptance(make: Make) -> None:
    keys = [("net", "walk", 0.1), ("net", "walk", 0.2)]
    before = make(dict.fromkeys(keys, [True] * 100))
    for status, headline in (("failed", "FAILED"), ("missing", "COULD NOT COMPARE")):
        now = make({keys[0]: [True] * 100, keys[1]: status})
        result = check.check_against_baseline(before, now, LIMITS)
        text = markdown_summary.render_summary(result, before, now, Path("out"), Path("b.json"))
        assert f"**{headline}: " in text
        assert "accept this run" not in text


def test_a_page_fits_a_comment_and_says_what_it_left_out(make: Make) -> None:
    keys = [("net", f"attack {each}", eps / 100) for each in range(60) for eps in range(1, 16)]
    before = make(dict.fromkeys(keys, [True] * 100))
    now = make(dict.fromkeys(keys, [False] * 100))
    result = check.check_against_baseline(before, now, LIMITS)
    text = markdown_summary.render_summary(result, before, now, Path("out"), Path("b.json"))
    assert len(text) < 65_536
    assert "did not fit this page" in text
    assert text.count("| 🔴 regressed |") == markdown_summary.MAX_ROWS
    red = len(result.select("regressed"))
    assert f"{red - markdown_summary.MAX_ROWS} more of these verdicts" in text


@pytest.mark.parametrize(("k", "blocks"), [(0, 0), (1, 0), (50, 15), (100, 30)])
def test_a_bar_is_as_long_as_its_fraction(k: int, blocks: int) -> None:
    assert markdown_summary.render_bar(k, 100).count("█") == blocks


# -------------------------------------------------------------------------------------------- SARIF


def test_sarif_has_a_rule_per_gate_and_a_result_for_each_verdict_that_needs_attention(
    make: Make,
) -> None:
    result = checked(make)
    log = json.loads(sarif.render_sarif(result, Path("of/my baseline.json")))
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules)) == len(sarif.RULES)
    levels = {"regressed": "error", "not compared": "warning"}
    shown = [each for each in result.verdicts if each.outcome in levels]
    assert [each["level"] for each in run["results"]] == [levels[each.outcome] for each in shown]
    for each, verdict in zip(run["results"], shown, strict=True):
        assert rules[each["ruleIndex"]] == each["ruleId"] == verdict.gate.replace(" ", "-")
        assert verdict.sentence in each["message"]["text"]
        (place,) = each["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "of/my%20baseline.json"
    prints = [json.dumps(each["partialFingerprints"]) for each in run["results"]]
    assert len(prints) == len(set(prints))
    assert run["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]


def test_every_gate_of_a_check_has_its_sarif_rule(make: Make) -> None:
    every = thresholds.override_thresholds(
        [f"{name}:-1pp" for name in thresholds.METRICS if name.endswith("robust_accuracy")], LIMITS
    )
    snap = sides(make)[0]
    gates = {each.gate for each in check.check_against_baseline(snap, snap, every).verdicts}
    assert gates == set(sarif.RULES)


def test_sarif_of_a_hostile_name_is_json_and_its_text_is_the_name(make: Make) -> None:
    log = json.loads(sarif.render_sarif(checked(make, HOSTILE), Path("b.json")))
    assert HOSTILE in log["runs"][0]["results"][0]["message"]["text"]


# -------------------------------------------------------------------------------------- annotations


def test_annotations_are_errors_for_red_and_warnings_for_what_was_not_compared(make: Make) -> None:
    lines = github_annotations.render_annotations(checked(make))
    assert [line.split(" ", 1)[0] for line in lines] == ["::error", "::error", "::warning"]
    assert "title=robust accuracy regressed::net, walk, eps 0.1: 100 → 50 of 100" in lines[0]


def test_a_hostile_name_makes_no_second_command(make: Make) -> None:
    for line in github_annotations.render_annotations(checked(make, HOSTILE)):
        assert "\n" not in line
        assert "\r" not in line
        assert "%0A::error::" in line
        assert "`%25`" in line


def test_no_more_annotations_are_written_than_github_shows(make: Make) -> None:
    keys = [("net", "walk", (each + 1) / 100) for each in range(30)]
    before = make(dict.fromkeys(keys, [True] * 100))
    after = make(dict.fromkeys(keys, [False] * 100))
    lines = github_annotations.render_annotations(
        check.check_against_baseline(before, after, LIMITS)
    )
    assert len(lines) == github_annotations.MAX_COMMANDS
    assert "22 more, see the summary" in lines[-1]
