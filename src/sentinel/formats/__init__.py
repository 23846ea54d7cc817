"""In and out: checkpoints, Hugging Face, GGUF, ONNX, CTranslate2, and from the name of a model to the model."""
