"""Contents of a run's manifest, provenance.json: the plan, its sources and the sessions.

Field names are a contract; `bench.storage.manifest` reads and checks them.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.core import files
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.storage import environment, manifest, schema
from bench.suite import plan
from bench.suite.schema import Suite


def build_manifest(
    suite: Suite, options: RunOptions, loaded: LoadedSuite, tasks: Sequence[plan.AttackTask]
) -> dict[str, Any]:
    """Build the manifest of a run that begins now.

    Args:
        suite: Checked suite.
        options: Options of this session.
        loaded: Data and models of the suite, and the process that loaded them.
        tasks: Everything that the suite plans.

    Returns:
        Contents of provenance.json with this session alone, which is not finished.
    """
    files_read = loaded.files
    return {
        "schema": schema.SCHEMA_VERSION,
        "suite": {
            "name": suite.name,
            "title": suite.title,
            "seed": suite.seed,
            "sweep": suite.sweep,
            "text": suite.text,
            "base": environment.relative_path(suite.base) if files_read else "",
        },
        "files": files_read,
        "data": {
            "name": loaded.data.name,
            "n": loaded.data.n,
            "shape": loaded.data.shape,
            "classes": loaded.data.classes,
            "fingerprint": loaded.data.fingerprint,
            "mapping": loaded.data.mapping,
            "chunk_examples": loaded.chunk_examples,
        },
        "models": {
            label: {
                "classes": model.facts.classes or 0,
                "fingerprint": model.facts.model_fingerprint,
                "findings": model.findings,
                "rows_per_pass": model.facts.rows,
                "predictions": model.facts.predictions,
                "logits": model.logits,
                "random": model.facts.random,
                # Only where there is one, so that the manifest of any other suite is as before.
                **(
                    {"detector": dataclasses.asdict(detector)}
                    if (detector := model.facts.detector)
                    else {}
                ),
            }
            for label, model in loaded.models.items()
        },
        "cells": [dataclasses.asdict(cell) for task in tasks for cell in task.cells],
        "crosschecks": [[pair.ours, pair.reference] for pair in suite.crosschecks],
        "certify": [dataclasses.asdict(task) for task in loaded.certification],
        # Only where it is given, so that the manifest of any other suite is as before.
        **({"corruption_baseline": suite.corruption_baseline} if suite.corruption_baseline else {}),
        "published": [dataclasses.asdict(entry) for entry in suite.published],
        "unions": [dataclasses.asdict(union) for union in suite.unions],
        "sessions": [
            {
                "started": current_time(),
                "finished": None,
                "command": options.command,
                "options": options.to_manifest(),
                "environment": loaded.environment,
                "loaded": loaded.libraries,
                "requirements": environment.list_requirements(),
            }
        ],
    }


def read_earlier_manifest(out: Path) -> dict[str, Any]:
    """Read what an earlier session of the same folder wrote, without checking all of it.

    Args:
        out: Folder of the run; temporary files of the manifest are removed.

    Returns:
        Contents of provenance.json; empty if there is none or it is damaged.
    """
    files.remove_partials(out, f"{manifest.FILE}*")
    content = manifest.read_raw(out)
    kinds = {"probes": dict, "sessions": list}
    is_usable = all(isinstance(content.get(key, kind()), kind) for key, kind in kinds.items())
    return content if is_usable else {}


def write_manifest(out: Path, content: dict[str, Any]) -> None:
    """Write provenance.json atomically.

    Args:
        out: Folder of the run.
        content: The manifest.

    Raises:
        SuiteError: The file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False)
    files.write_atomic(out / manifest.FILE, text.encode())


def current_time() -> str:
    """Return the current time.

    Returns:
        UTC in ISO 8601, with milliseconds.
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds")
