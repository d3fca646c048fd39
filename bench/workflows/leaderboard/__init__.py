"""Rank models under one declared threat model by their worst case over its attacks.

The threat model is a suite. Read `ranking` first. `model_card` describes a model and `card_writing`
writes a card from a run, `entries` stores cards with the outcomes of every example, `admission`
runs a model again before it enters, and `page` renders the leaderboard.
"""
