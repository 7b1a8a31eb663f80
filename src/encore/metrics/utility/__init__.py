"""What forgetting costs everything else."""
