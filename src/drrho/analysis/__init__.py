"""Results -> laws. Reads numbers; trains nothing."""
