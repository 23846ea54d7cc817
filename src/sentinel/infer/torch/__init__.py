"""Engines that run the decoder by PyTorch."""
