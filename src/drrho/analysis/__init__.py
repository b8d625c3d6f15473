"""Results and losses -> what theory says of them: laws, bounds. Trains nothing."""
