"""Files, lengths, optional packages and plots: used by all rooms above."""
