"""Arguments of the command line into a recipe."""
