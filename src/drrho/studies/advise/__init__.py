"""Uses of a reference raced on a user's own data: which one to train by, and what that cost."""
