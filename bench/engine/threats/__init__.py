"""One file per family of images that is a threat model without a norm, each ending in a THREAT.

The file's name, with dashes, is what a suite names as `norm`. `bench.core.contracts.threat` is the
contract, `registry` finds a family by its name; the attacks on a family are in `bench.attacks`.
Imports `core` and `engine`.
"""
