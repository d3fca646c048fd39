"""Find out by experiment why two cells disagree.

Read `search` first: it changes one side towards the other, one difference at a time, and names the
change that closes the gap. `hypotheses` lists the changes; `experiments` runs both sides and
observes what they do.
"""
