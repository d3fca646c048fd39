"""Attacks of other libraries by their names there, one file per library."""
