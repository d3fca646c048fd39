"""One file per data set, each ending in a DATASET record; the file name is the data set's name.

Read `digits` first. `inputs` converts what users have into float images, `in_memory` and
`image_files` are helpers, `prefetch` reads ahead. Imports `core` and `engine`.
"""
