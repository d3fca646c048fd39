"""`bench gpu-check`: what the GPU path does on a real GPU, in a few minutes.

`check` runs the parts one after another, each within a share of the time, and writes every result
at once; `captures`, `race`, `passes` and `leading` are the parts; `setup` holds what they share and
how large they are; `page` summarises.
"""
