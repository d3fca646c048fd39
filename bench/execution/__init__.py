"""Execution of a plan: from a checked suite to a finished run, on any backend.

Read `runner` first, then `work` (units and their results) and `result_writer` (their storage).
`backends/` contains where units are executed: this process, a worker process with limits, Ray.
`merge` joins the folders of shards, `resume_check` compares models with existing records. May
import `evaluation` and the packages below it, not `analysis`.
"""
