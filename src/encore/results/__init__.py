"""What the rows of `metrics.json` come to: targets met or missed, and findings in sentences."""
