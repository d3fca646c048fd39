"""A whole run on tensors that say they are on a GPU: preflight, attack, audit, certificates."""

from pathlib import Path

import pytest

import bench
from gpu.known_events import TABLES, find_unknown
from gpu.pretended import Machine

SUITE = """
schema = 1
name = "run"
[data]
name = "digits"
limit = 6
[[models]]
name = "nets.py:SmallNet"
label = "net"
weights = "random"
[[models]]
name = "nets.py:SmallNet"
label = "asked for scores"
weights = "random"
access = "scores"
[[attacks]]
name = "square"
norm = "linf"
eps = [0.1]
params = { steps = 2 }
[[certify]]
method = "ibp"
[[certify]]
method = "crown"
[[certify]]
method = "smoothing"
sigma = 0.25
n0 = 2
n = 10
"""


@pytest.mark.slow
def test_a_run_on_a_gpu_mixes_no_devices_and_waits_only_where_it_may(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from gpu.pretended import SmallNet\n", encoding="utf-8")
    path, machine = tmp_path / "suite.toml", Machine()
    path.write_text(SUITE, encoding="utf-8")
    with machine.run():
        result = bench.run(str(path), tmp_path / "out", device="cuda:0", batch_size=8)
    assert set(result.table["status"]) == {"ok"}
    assert find_unknown(machine.in_steps, tuple(TABLES)) == []
    assert find_unknown(machine.gpu.events) == []
