"""Results, losses and risks -> laws, and what theory says of them. Trains nothing."""
