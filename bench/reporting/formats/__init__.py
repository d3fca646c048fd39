"""Format numbers and tables as text, and rows as files.

Read `numbers` first: every number that a page shows is formatted there. `tables` defines a table of
a publication, `markdown` and `latex` render it, and `registered` finds formats of other packages;
`terminal_table` prints a table, `exports` writes typed rows as CSV, JSON and Parquet. Imports
`suite`, `analysis`, `storage` and `core`.
"""
