"""Where the work units of a run are done: a watched subprocess, Ray."""
