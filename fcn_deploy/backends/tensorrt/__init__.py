"""TensorRT and TensorRT-RTX: two libraries with nearly one API, behind one adapter."""
