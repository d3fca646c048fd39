"""Render a check as JUnit XML, for GitHub actions, GitLab and Jenkins.

Each gate is a test suite and each verdict a test case. Failing verdicts are failures, "not
compared" is an error, "new", "not judged" and, unless the check is strict, "lost, not proven" are
skipped. A failure's text holds the ids of all flipped examples.
"""

import re
from xml.etree import ElementTree

from bench.workflows.gate.verdicts import Check, Verdict, list_flipped_examples

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 forbids even as references."""
_ELEMENTS = {"not compared": "error", "new": "skipped", "not judged": "skipped",
             "lost, not proven": "skipped"}  # fmt: skip


def render_junit(check: Check, suite: str) -> bytes:
    """Render the XML document.

    Args:
        check: The finished check.
        suite: Name of the suite, for the names of test suites.

    Returns:
        The document in UTF-8.
    """
    top = ElementTree.Element("testsuites", _counts(check, check.verdicts))
    for gate in dict.fromkeys(verdict.gate for verdict in check.verdicts):
        verdicts = [verdict for verdict in check.verdicts if verdict.gate == gate]
        name = remove_forbidden(f"{suite}: {gate}")
        group = ElementTree.SubElement(top, "testsuite", {"name": name, **_counts(check, verdicts)})
        for verdict in verdicts:
            _case(group, check, verdict)
    ElementTree.indent(top)
    document: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _case(group: ElementTree.Element, check: Check, verdict: Verdict) -> None:
    """Add a test case with a unique name, by which GitLab matches cases between pipelines."""
    name = remove_forbidden(f"{verdict.gate}: {verdict.where}")
    about = {"classname": remove_forbidden(verdict.model), "name": name}
    case = ElementTree.SubElement(group, "testcase", about)
    kind = _find_element(check, verdict)
    if kind is None:
        ElementTree.SubElement(case, "system-out").text = remove_forbidden(verdict.sentence)
        return
    message = {"message": remove_forbidden(f"{verdict.outcome}: {verdict.sentence}")}
    if kind == "skipped":
        ElementTree.SubElement(case, kind, message)
        return
    ended = ElementTree.SubElement(case, kind, {**message, "type": verdict.outcome})
    ended.text = remove_forbidden(
        "\n".join([verdict.sentence, *list_flipped_examples(verdict, most=None)])
    )


def _find_element(check: Check, verdict: Verdict) -> str | None:
    """Name the element that a case holds; None if it passed."""
    return (
        "failure" if verdict.outcome in check.failing_outcomes else _ELEMENTS.get(verdict.outcome)
    )


def _counts(check: Check, verdicts: list[Verdict]) -> dict[str, str]:
    kinds = [_find_element(check, verdict) for verdict in verdicts]
    names = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {
        "tests": str(len(kinds)),
        **{name: str(kinds.count(kind)) for name, kind in names.items()},
    }


def remove_forbidden(text: str) -> str:
    """Replace the characters that XML forbids.

    Args:
        text: Any text.

    Returns:
        Text that an XML document can hold.
    """
    return _FORBIDDEN.sub("�", text)
