"""Fixtures of the tests of the GPU path."""

from warm_processes import warm

__all__ = ["warm"]
