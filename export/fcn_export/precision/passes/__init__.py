"""Rewrite ONNX graphs by onnx_ir passes, one a module; each says what it needs and keeps."""
