"""Import paths of version 0.1.0 that copies of its recipes use."""
