"""Servers under load: what they are started by, and a client of our own that measures them."""
