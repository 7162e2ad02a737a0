"""Which pixels of the image a tensor's samples depend on, read from the graph."""

from __future__ import annotations

from fcn_deploy.graph.receptive_field.field import ReceptiveField, find_receptive_field
from fcn_deploy.graph.receptive_field.spans import Span

__all__ = ["ReceptiveField", "Span", "find_receptive_field"]
