"""From a plan to a finished run, on any backend.

Read `runner` first, then `work`: units of work, done one by one and written as they come.
`backends/` hold what does them: this process, a watched subprocess, Ray. `merge` joins the folders
of shards, `resume_check` asks models again before a run is resumed. Imports `evaluation` and what
is below it; `analysis` is its neighbour.
"""
