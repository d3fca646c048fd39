"""Runs with their report, and copies without records, as results are committed."""

import shutil
from pathlib import Path

from bench.analysis import results
from bench.execution import options, runner
from bench.reporting import run_output
from bench.reporting.site import sources, writer
from bench.suite import reader


def run_with_report(text: str, out: Path, base: Path | None = None) -> Path:
    """Run a suite on the CPU and write its report; file names start from `base`, or from `out`."""
    suite = reader.parse_suite(text, "suite.toml", base or out)
    runner.run_suite(suite, out, options.RunOptions(device="cpu"))
    run_output.write_run_output(results.read_results(out), out)
    return out


def copy_without_records(run: Path, to: Path, *absent: str) -> Path:
    """Copy the folder of a run without its records and without files of some names."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("records", *absent))
    return to


def publish_page(run: Path, to: Path) -> str:
    """Publish a run into a folder and return its page."""
    writer.publish(sources.gather([run]), to)
    return (to / "index.html").read_text(encoding="utf-8")
