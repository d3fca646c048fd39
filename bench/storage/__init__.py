"""Files in the folder of a run: written atomically, checked when they are read.

Read `schema` first, the columns of the per-example records; then `records`, which writes them, and
`reader` with `frame_builder`, which read them, and `manifest` (provenance.json). `images` and
`adversarial_images` store images, `environment` describes versions and device, `fingerprint` hashes
all records, `spreadsheet` writes CSV. Imports `suite` and what is below it.
"""
