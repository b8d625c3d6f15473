"""Evaluation tasks: how each kind is read and scored."""
