"""A run's folder on disk: checkpoints, logs, and how they are read back."""
