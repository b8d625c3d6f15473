"""Selection of a batch from a super-batch."""
