"""Training of the codec's stages, and export of the trained codec."""
