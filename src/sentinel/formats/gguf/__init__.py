"""GGUF, the file format of llama.cpp: read, written, and its tokenizer."""
