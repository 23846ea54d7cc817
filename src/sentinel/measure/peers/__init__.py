"""Inference engines of others on the same weights, each optional."""
