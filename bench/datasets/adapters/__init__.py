"""Load data sets of other libraries: one file per library, with a function `adapt(name)`."""
