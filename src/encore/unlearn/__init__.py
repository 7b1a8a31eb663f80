"""`encore forget`: the training loop, what stops it, and what makes a run of it."""
