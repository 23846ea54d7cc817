"""Time and memory per component of a model that runs."""
