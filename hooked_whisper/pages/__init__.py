"""Pages to look at and listen to: each one HTML file that works from disk, without a network."""
