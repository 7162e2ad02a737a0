"""Passes over ONNX graphs, of onnx_ir's kind: one a module, which says what it needs and keeps."""
