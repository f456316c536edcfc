"""Token files: what they hold and their two formats, .focal and .npz."""
