"""Attacks that close, replace or redirect stdout: the run goes on and says so."""

from pathlib import Path

import pytest
from forked import run_forked

SUITE = """
schema = 1
name = "s"
[data]
name = "digits"
limit = 4
[[models]]
name = "lenet"
weights = "digits"
"""
ENTRY = """
[[attacks]]
name = "rude.py:{name}"
norm = "linf"
eps = [0.1]
"""
RUDE = """
import dataclasses, io, os, sys
from bench.attacks.noise import ATTACK as noise

def closes(*a):
    sys.stdout.close(); sys.stderr.close()
    return a[1]

def truly(*a):
    sys.__stdout__.close(); sys.__stderr__.close(); os.closerange(1, 3)
    return a[1]

def replaces(*a):
    sys.stdout = io.StringIO(); sys.stderr = None
    return a[1]

def redirects(*a):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.close(2)
    return a[1]

def raises(*a):
    class Silent(BaseException):
        def __str__(self):
            raise SystemExit(7)
    os.close(1)
    raise Silent

for each in (closes, truly, replaces, redirects, raises):
    run = lambda model, x, y, threat, params, rng, each=each: each(model, x)
    globals()[each.__name__.upper()] = dataclasses.replace(noise, run=run, rule=None)
"""
NAMES = ("CLOSES", "TRULY", "REPLACES", "REDIRECTS", "RAISES")


@pytest.mark.parametrize("more", [(), ("--isolate",)])
def test_a_run_says_what_an_attack_did_to_its_streams_and_goes_on(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    text = SUITE + "".join(ENTRY.format(name=name) for name in NAMES)
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    (tmp_path / "rude.py").write_text(RUDE, encoding="utf-8")
    words = ["bench", "run", "s.toml", "--out", "out", "--device", "cpu", *more]
    done = run_forked(
        f"import sys; sys.argv = {words}\nfrom bench import cli; cli.main()", tmp_path
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "report: " in done.stdout
    assert "failed: lenet · rude.py:RAISES at eps 0.1: Silent (rude.py:" in done.stderr
    said = " ".join(done.stderr.split())
    for name in NAMES:
        assert f"note: lenet · rude.py:{name}: its code closed or replaced std" in said
    assert said.count("put back since") == len(NAMES)
