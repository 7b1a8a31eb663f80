"""`encore forget`: the training loop, its stopping rules, and runs."""
