"""Recipes by name: published runs, and the fine-tuning of a pretrained model."""
