"""Long jobs over many files: reading ahead, batching, progress, sharing."""
