"""What is measured of a model, one metric per file; `encore.results` says what the rows mean."""
