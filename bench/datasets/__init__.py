"""Provide data sets: one file each, named as the data set and ending in a DATASET record.

Read `digits` first, then `as_data`, which makes a data set of what a user has. `inputs`, `arrays`
and `examples` convert images and labels, `in_memory` and `streamed` make a `Data` of them (hashed
by `content_hash`), `vision` reads torchvision's data sets, `data_files`, `shards` and `image_files`
read files of the user's, `imagenet_classes` names classes, `adapters/` holds one file per other
library, `prefetch` reads ahead. Imports `core` and `engine`.
"""

from bench.core import registry
from bench.datasets import data_files

registry.add_resolver(
    "datasets",
    data_files.is_data_file,
    data_files.open_file,
    content="a data file",
    is_code=False,
    folder_hint="a folder of images is the data set 'image_folder' with --data-dir {folder}",
)
