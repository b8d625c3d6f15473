"""State per data-set sample: running averages and individual temperatures."""
