"""How good and how fast: results, benchmarks."""
