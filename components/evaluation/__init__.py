"""Judges a model on held-out rows, against the champion where there is one, and describes it for people."""
