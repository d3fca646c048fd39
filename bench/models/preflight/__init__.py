"""Checks of a model before it is attacked: is it deterministic, differentiable, preprocessed right.

Read `checks` first; `findings` are what they return, `preprocessing` recognises a wrong mean or
standard deviation.
"""
