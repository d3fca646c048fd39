"""Turn the tables of a run into pages, figures and exports.

Read `run_output` first: it writes table.csv, plots and report of one run. `formats/` formats
numbers and tables, `plots/` draws figures, `report/` writes the report of a run, `site/` a web page
of several runs, `trackers/` logs a run to MLflow or TensorBoard; `templates` renders every page.
Imports `analysis`, `execution` and below.
"""
