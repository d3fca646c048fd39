"""A check as JUnit XML, which GitHub actions, GitLab and Jenkins read: a test case per verdict.

A test suite for each thing watched, a test case for each cell, model or attack. Red is a failure,
what could not be compared an error, what was not judged or is new is skipped; the ids of examples
that flipped stand in the failure's text, all of them.
"""

import re
from xml.etree import ElementTree

from bench.workflows.gate import wording
from bench.workflows.gate.verdicts import RED, Check, Verdict

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not."""
_ELEMENTS = {**dict.fromkeys(RED, "failure"), "not compared": "error",
             "new": "skipped", "not judged": "skipped"}  # fmt: skip


def render(check: Check, suite: str) -> bytes:
    """The XML, encoded."""
    top = ElementTree.Element("testsuites", _counts(check.verdicts))
    for gate in dict.fromkeys(verdict.gate for verdict in check.verdicts):
        verdicts = [verdict for verdict in check.verdicts if verdict.gate == gate]
        name = _text(f"{suite}: {gate}")
        group = ElementTree.SubElement(top, "testsuite", {"name": name, **_counts(verdicts)})
        for verdict in verdicts:
            _case(group, verdict)
    ElementTree.indent(top)
    found: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return found + b"\n"


def _case(group: ElementTree.Element, verdict: Verdict) -> None:
    """The name alone tells a case from the others: GitLab matches cases by it over time."""
    name = _text(f"{verdict.gate}: {verdict.where}")
    about = {"classname": _text(verdict.model), "name": name}
    case = ElementTree.SubElement(group, "testcase", about)
    kind = _ELEMENTS.get(verdict.outcome)
    if kind is None:
        ElementTree.SubElement(case, "system-out").text = _text(verdict.sentence)
        return
    message = {"message": _text(f"{verdict.outcome}: {verdict.sentence}")}
    if kind == "skipped":
        ElementTree.SubElement(case, kind, message)
        return
    ended = ElementTree.SubElement(case, kind, {**message, "type": verdict.outcome})
    ended.text = _text("\n".join([verdict.sentence, *wording.flipped(verdict, most=None)]))


def _counts(verdicts: list[Verdict]) -> dict[str, str]:
    kinds = [_ELEMENTS.get(verdict.outcome) for verdict in verdicts]
    names = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    return {
        "tests": str(len(kinds)),
        **{name: str(kinds.count(kind)) for name, kind in names.items()},
    }


def _text(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
