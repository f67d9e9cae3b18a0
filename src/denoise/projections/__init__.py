"""From raw projections to reconstructed splits, and simulated scans to try it on."""
