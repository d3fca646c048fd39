"""Lower bounds of a network's margins: IBP and CROWN.

Read `bounds` first. `network` reads a model as a sequence of `layers`, `store` keeps certificates
on disk.
"""
