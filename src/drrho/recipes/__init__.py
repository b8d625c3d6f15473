"""Recipes by name: the published runs and their counterparts, at any scale."""
