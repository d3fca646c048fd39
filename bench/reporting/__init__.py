"""Turn the tables of a run into pages, figures and exports.

Read `run_output` first: it writes table.csv, plots and report of one run. `formats/` formats
numbers and tables, `plots/` draws figures, `example_images` selects images for them, `report/`
writes the report of a run, `site/` a web page of several runs, `trackers/` logs a run to MLflow,
TensorBoard or Weights & Biases; `templates` renders every page, with the `sentences` that several
share. `terminal` and `display` show results where they are printed. Imports `analysis`, `execution`
and below.
"""
