"""Write the report of a run.

Read `writer` first: it collects the views of the tables and renders both pages. `views` defines a
view; each other module builds the views of one section. `run_comparison` prints and writes the
comparison of two runs. Imports `reporting.plots`, `reporting.formats` and below.
"""
