"""Bound a network's margins from below by IBP and CROWN.

Read `bounds` first. `network` reads a model as a sequence of `layers`, `store` certifies a suite's
models and stores the certificates.
"""
