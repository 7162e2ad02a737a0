"""Rewrites of an ONNX graph, one a module: each says what it needs, does, and counts."""
