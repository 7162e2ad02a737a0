"""What a network's output means, found once by one rule: in the graph, checked by values."""

from __future__ import annotations

from fcn_deploy.graph.meaning.check import (
    asked_meaning,
    check_values,
    labels_of,
    probabilities,
    require_known,
)
from fcn_deploy.graph.meaning.find import find_meaning, find_queries
from fcn_deploy.graph.meaning.found_meaning import Activation, FoundMeaning

__all__ = [
    "Activation",
    "FoundMeaning",
    "asked_meaning",
    "check_values",
    "find_meaning",
    "find_queries",
    "labels_of",
    "probabilities",
    "require_known",
]
