"""How a model runs: engines, sampling, generation."""
