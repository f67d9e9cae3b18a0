"""One streaming engine for a slice, a range of slices or a volume, in every mode."""
