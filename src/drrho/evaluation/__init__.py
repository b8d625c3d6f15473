"""Evaluation of models: retrieval, zero-shot classification and lists of tasks."""
