"""Synthetic scenes with exact labels, and networks trained on them for a few minutes.

Agreement between two ways of running a network means something on trained weights only: a network
with random weights has no margins between its classes, and any rounding flips its labels.
"""
