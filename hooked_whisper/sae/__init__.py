"""Sparse autoencoders: spliced into any hook point, trained, loaded, saved and judged."""
