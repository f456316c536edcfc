"""Training: one Brain a stage, their losses, and export of what they learn."""
