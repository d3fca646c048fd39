"""From tables to what people read.

Read `run_output` first: table.csv, plots and report of one run. `formats/` spell numbers and
tables, `plots/` draw, `report/` writes the pages of a run, `site/` a web page of several runs,
`trackers/` tell MLflow or TensorBoard. Imports `analysis`, `execution` and what is below them.
"""
