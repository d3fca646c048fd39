"""Time the same workloads in bench, a bare loop and other libraries, in one process.

Read `race` first: it times the competitors in turn. `workloads.toml`, read by `workloads`, declares
model, data, attack, parameters and eps; `setup` loads a workload; each file of `competitors/` runs
it in one library; `memory` measures peak memory in one process per competitor; `page` renders the
results.
"""
