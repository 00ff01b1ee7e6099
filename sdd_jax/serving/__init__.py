"""A run's network for use: on pictures, and as a file for other programs."""
