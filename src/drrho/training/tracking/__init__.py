"""Trackers: where the metrics of a run go besides its folder."""
