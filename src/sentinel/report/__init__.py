"""What is told of the results."""
