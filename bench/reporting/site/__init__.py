"""Publish runs: tables for print, rows for programs, and a web page.

Read `writer` first: it writes the folder of a publication. `sources` reads the runs, `paper_tables`
and `table_notes` build the tables, `page` and `svg_chart` the web page. Imports `reporting.report`
and below.
"""
