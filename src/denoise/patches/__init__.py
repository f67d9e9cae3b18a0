"""Where training and validation blocks are cut from a volume."""
