"""A run as files for devices: the foundation as ONNX, shared parameters, and a small file per user."""
