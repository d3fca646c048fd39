"""Signs that an attack has failed rather than the defence held.

signs says what a sign is and lists the kinds; probes asks a model, probed does so once a run and
keeps the answers in provenance.json; evidence arranges the records, checks reads the signs out of
them; findings is the audit of a whole run.
"""
