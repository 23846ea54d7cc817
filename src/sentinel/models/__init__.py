"""What a model is: specification, decoder, families, checkpoints and sources."""
