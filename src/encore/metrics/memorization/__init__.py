"""How well a model still knows tracks: likelihood, generations, distance to a gold."""
