"""Define the artifact's format: the manifest's records, and how the folder is read and written."""
