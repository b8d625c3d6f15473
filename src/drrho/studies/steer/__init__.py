"""One command from a user's own pairs and a reference to a steered model and its report."""
