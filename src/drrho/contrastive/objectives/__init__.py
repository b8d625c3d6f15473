"""Contrastive objectives: configuration, loss and the module that combines them."""
