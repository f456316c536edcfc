"""Token files: their content and their two formats, .focal and .npz."""
