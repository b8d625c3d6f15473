"""One run, from its configuration to a trained model."""
