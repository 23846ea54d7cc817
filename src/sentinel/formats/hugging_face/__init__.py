"""The decoder as a Hugging Face model: config, cache, saving."""
