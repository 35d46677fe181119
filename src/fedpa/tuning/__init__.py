"""Choosing settings on pseudo-private users, by the same number of trials for every method."""
