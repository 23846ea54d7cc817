"""Prune, measure, regrow, learn, again, within a budget."""
