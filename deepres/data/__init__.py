"""From environments to batches: what is collected, kept and drawn."""
