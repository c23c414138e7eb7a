"""The analyses of the paper: what can be computed from theory, from a run, or from a model at hand."""
