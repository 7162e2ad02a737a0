"""Whether a graph computes what the model computes, and how many labels a variant keeps."""
