"""Bounds and learning curves that the theory of DRRho risk minimisation predicts."""
