"""Smaller policies from trained ones: what is learned again by another network, and what can be left out."""
