"""What a person reads of a run: `report.html`, and the model's card. Made of the run's files alone, without torch."""
