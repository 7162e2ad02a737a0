"""Time the same frames with this project and with other libraries, in one run."""
