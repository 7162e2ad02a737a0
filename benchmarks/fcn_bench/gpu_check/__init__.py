"""make gpu-check: try everything that needs an NVIDIA GPU, and write a report to send back.

Builds plans with each TensorRT that is installed, compares their labels with ONNX Runtime's on the
CPU, runs them over each CUDA library, and times them against PyTorch on CUDA and trtexec. Plans
that end in scores are labelled on the GPU, and compared and timed as well. A step that fails is
noted with its traceback, and the others go on.
"""
