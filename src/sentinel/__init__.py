"""Sentinel: adaptive transformers that are pruned, regrown and run fast on the machine at hand."""

__version__ = "0.1.0"
