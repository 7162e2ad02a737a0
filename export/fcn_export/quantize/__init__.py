"""INT8: ranges from images, Q/DQ nodes where TensorRT wants them, and the budget that is kept."""
