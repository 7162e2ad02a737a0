"""Make the fp16 and int8 graphs of an artifact within a budget of mean IoU."""
