"""Backends: where the units of a run are executed.

Read `backend` (the interface) and `worker` (load, run_unit) first. `inline` executes units in this
process, `subprocess` in a worker process whose main loop is in `process`, `ray` on a cluster.
`loss_policy` decides what follows the loss of a worker.
"""
