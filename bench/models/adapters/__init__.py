"""Models of other libraries and services by their names there, one file per library."""
