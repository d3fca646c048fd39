"""Render why a check could not be made, in the forms of a finished one.

A job reads its result from files: without them a missing baseline would look like a job that was
never run.
"""

from xml.etree import ElementTree

from bench.reporting.formats import markdown
from bench.workflows.gate.junit import remove_forbidden


def render_junit(problem: str) -> bytes:
    """Render JUnit XML with one error.

    Args:
        problem: Why the check could not be made.

    Returns:
        The document in UTF-8.
    """
    counts = {"tests": "1", "failures": "0", "errors": "1", "skipped": "0"}
    top = ElementTree.Element("testsuites", counts)
    group = ElementTree.SubElement(top, "testsuite", {"name": "bench check", **counts})
    about = {"classname": "bench check", "name": "comparison with the baseline"}
    case = ElementTree.SubElement(group, "testcase", about)
    text = remove_forbidden(problem)
    error = ElementTree.SubElement(case, "error", {"message": text, "type": "not compared"})
    error.text = text
    ElementTree.indent(top)
    document: bytes = ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def render_summary(problem: str) -> str:
    """Render the Markdown summary.

    Args:
        problem: Why the check could not be made.

    Returns:
        Markdown.
    """
    return f"### ⚠️ Robustness could not be checked\n\n{markdown.escape(problem)}\n"
