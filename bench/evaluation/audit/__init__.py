"""Look for symptoms that an attack has failed rather than the defence held.

Read `symptoms` first, which lists them. `probes` examines a model, `gradient_check` its gradients,
and `probe_models` does so once per run, for provenance.json; `evidence` arranges the records,
`checks` looks for symptoms in them, and `findings` audits a whole run.
"""
