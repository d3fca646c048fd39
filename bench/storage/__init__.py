"""What lies in the folder of a run, written atomically and checked as it is read.

Read `schema` first, the columns of the per-example records; then `records` and `manifest`
(provenance.json). Imports `suite` and what is below it.
"""
