"""What is measured of a model, one metric a file; `summary` reads the rows and says what they mean."""
