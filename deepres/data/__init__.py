"""From environments to batches: the crossing to torch, collection, the replay ring, and how goals are drawn."""
