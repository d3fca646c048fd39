"""Backends: where the units of a run are executed.

Read `backend` (the interface) and `worker` (load, run_unit) first. `inline` executes units in this
process, `subprocess` in a worker process, which `worker_process` starts and watches and whose main
loop is in `process`, `ray` on a cluster. `limits` holds the limits of a worker process,
`loss_policy` decides what follows its loss.
"""
