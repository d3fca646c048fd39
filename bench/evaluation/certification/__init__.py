"""Certify what no attack can reach: bounds of a model by IBP and CROWN, and randomised smoothing.

Read `bounds` first. `network` reads a model as a graph of `layers`, `relaxation` bounds nonlinear
layers by lines, `smoothing` certifies smoothed classifiers, `store` certifies a suite's models and
stores the certificates.
"""
