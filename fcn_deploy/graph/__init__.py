"""All knowledge of ONNX graphs: what a file holds, what its outputs mean, what a pixel sees."""
