"""Can this image be trusted? Tests of the splits before training, and of a model's result after it, without a truth."""
