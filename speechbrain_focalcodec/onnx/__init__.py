"""ONNX: exported models, and running them without torch."""
