"""How a model changes shape."""
