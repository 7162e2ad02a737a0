"""The artifact's format: what its manifest says, how the folder is read and written."""
