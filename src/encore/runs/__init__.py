"""What a command does: forget, evaluate, generate; the run folder, checkpoints, signals."""
