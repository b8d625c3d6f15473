"""Results -> what people look at. Reads results; trains nothing."""
