"""Training: a gradient step of any algorithm, a round of a run, and the loop around it."""
