"""Runs -> tables and pages for publication, each of which says how it is made again."""
