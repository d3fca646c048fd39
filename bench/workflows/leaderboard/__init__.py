"""Many models under one declared threat model, the worst case over its attacks, ranked.

The threat model is a suite. card says what a model is; entries are cards with the outcomes of every
example; standings ranks them; admission runs a model again before it enters; board is what people
read.
"""
