"""From a PyTorch module or an ONNX file to one graph: frames in, labels out, any size."""
