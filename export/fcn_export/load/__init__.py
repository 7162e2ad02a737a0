"""From a file to a PyTorch network, without running anything of the file."""
