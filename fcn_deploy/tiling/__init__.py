"""Segment large frames in bounded memory: overlapping tiles whose results join without a seam."""
