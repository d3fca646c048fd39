"""Rank models under one declared threat model by their worst case over its attacks.

The threat model is a suite. Read `ranking` first. `model_card` describes a model, `entries` stores
cards with the outcomes of every example, `admission` runs a model again before it enters, and
`page` renders the leaderboard.
"""
