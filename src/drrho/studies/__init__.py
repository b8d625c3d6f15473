"""Studies of runs: comparisons, scaling laws, probes, curation, reports."""
