"""What is written down of runs, and how: run folders, checkpoints, records, dates."""
