"""Trained networks in the forms that others load: their own models, safetensors, ONNX."""
