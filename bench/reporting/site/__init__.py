"""Publish runs: tables for print, rows for programs, and a web page.

Read `writer` first: it writes the folder of a publication. `sources` reads the runs;
`paper_tables`, `model_tables` and `summary_tables` build the tables, from `grids` that
`grid_tables` formats, with their `table_notes`; `page`, `pivots` and `svg_chart` build the web
page. Imports `reporting.report` and below.
"""
