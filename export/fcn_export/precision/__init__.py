"""The fp16 and int8 graphs of an artifact, and the budget that they keep."""
