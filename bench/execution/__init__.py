"""Execution of a plan: from a checked suite to a finished run, on any backend.

Read `runner` first, then `work` (units and their results) and `result_writer` (their storage).
`preparation` loads a suite and `loaded_suite` describes it to processes without its models;
`options` states what the suite does not, `chunk_choice` how many examples a chunk holds, `sharding`
which are a shard's. `backends/` contains where units are executed: this process, a worker process
with limits, Ray. `events`, `decisions` and `run_forecast` say how a run goes; `manifest_builder`
describes it. `merge` joins the folders of shards, `resume_check` compares models with existing
records, `refusal` removes what a refused run wrote. May import `evaluation` and the packages below
it, not `analysis`.
"""
