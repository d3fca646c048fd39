"""Attacks of other libraries under their names there, one file per library."""
