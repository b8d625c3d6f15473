"""From batches to a trained model: the loop, what a checkpoint holds, the optimiser, the log."""
