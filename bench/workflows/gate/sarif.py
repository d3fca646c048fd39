"""Render a check as SARIF, the format of code scanning on GitHub and of static analysis elsewhere.

There is one rule per gate, and one result per verdict that needs attention: an error where the
check fails, a warning where a loss is not proven or something was not compared. A result points at
the baseline, the file that the run is compared with.
Source: SARIF 2.1.0, https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; GitHub's
subset, https://docs.github.com/code-security/code-scanning/sarif-support-for-code-scanning
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.core.files import short_hash
from bench.workflows.gate.verdicts import Check, Verdict

RULES = {
    "clean accuracy": "The accuracy of a model without attack.",
    "robust accuracy": "The robust accuracy under an attack, in the worst case over the attacks of "
    "a threat model, and of all cells of a model together.",
    "union of threat models": "The robust accuracy under all attacks of several threat models.",
    "worst class": "The robust accuracy of the class where it is lowest.",
    "robust accuracy within queries": "The robust accuracy within a budget of queries.",
    "validity": "Images that break their threat model.",
    "throughput": "Examples per second, against a bare loop on the same machine.",
    "audit": "Symptoms of a failed attack.",
}
"""Gate -> what it compares."""
_FINGERPRINT = "benchVerdict/v1"


def render_sarif(check: Check, baseline: Path) -> bytes:
    """Render the SARIF log of a check.

    Args:
        check: The finished check.
        baseline: File of the baseline, relative to the root of the repository.

    Returns:
        JSON in UTF-8.
    """
    failing = check.failing_outcomes
    shown = check.select("regressed", "failed", "lost, not proven", "not compared")
    results = [
        _render_result(verdict, "error" if verdict.outcome in failing else "warning", baseline)
        for verdict in shown
    ]
    return _render_log(results, {"executionSuccessful": True, "exitCode": check.exit_code})


def render_problem(problem: str) -> bytes:
    """Render the SARIF log of a check that could not be made.

    Args:
        problem: Why not, in a sentence.

    Returns:
        JSON in UTF-8.
    """
    notice = {"level": "error", "message": {"text": problem}}
    invocation = {
        "executionSuccessful": False,
        "exitCode": 2,
        "toolExecutionNotifications": [notice],
    }
    return _render_log([], invocation)


def _render_log(results: list[dict[str, Any]], invocation: dict[str, Any]) -> bytes:
    driver = {
        "name": "bench",
        "version": importlib.metadata.version("robustness-bench"),
        "rules": [
            {"id": _identify(gate), "shortDescription": {"text": text}}
            for gate, text in RULES.items()
        ],
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {"tool": {"driver": driver}, "invocations": [invocation], "results": results}
        ],
    }  # fmt: skip
    return json.dumps(log, ensure_ascii=False, indent=1).encode("utf-8", "replace") + b"\n"


def _render_result(verdict: Verdict, level: str, baseline: Path) -> dict[str, Any]:
    place = f"{verdict.gate}: {verdict.where}"
    uri = baseline.as_uri() if baseline.is_absolute() else quote(baseline.as_posix())
    return {
        "ruleId": _identify(verdict.gate),
        "ruleIndex": [*RULES].index(verdict.gate),
        "level": level,
        "message": {"text": f"{verdict.where}: {verdict.outcome}: {verdict.sentence}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": uri},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [{"fullyQualifiedName": place}],
            }
        ],
        "partialFingerprints": {_FINGERPRINT: short_hash(place.encode("utf-8", "replace"))},
    }


def _identify(gate: str) -> str:
    return gate.replace(" ", "-")
