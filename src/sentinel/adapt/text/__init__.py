"""Text to learn and to judge by: corpora, packed windows."""
