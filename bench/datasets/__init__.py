"""Provide data sets: one file each, named as the data set and ending in a DATASET record.

Read `digits` first. `inputs` converts users' tensors to float images, `in_memory` and `image_files`
are helpers, `prefetch` reads ahead. Imports `core` and `engine`.
"""
