"""What a user may say of how a model is opened: one record, from the call to the last network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcn_deploy.backends.execution_providers import ProviderList
from fcn_deploy.names import NETWORK_COLORS, NetworkColor
from fcn_deploy.opening.choose import parse_precision

__all__ = ["ASKED_ACTIVATIONS", "OpenOptions"]

ASKED_ACTIVATIONS = ("auto", "logits", "sigmoid", "softmax", "ids")
"""What a user may say that a network's outputs are; auto: what its graph says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How to open a model; for what each field means see `Segmenter.open`.

    Raises:
        ValueError: a field is none of its choices.
    """

    backend: str = "auto"
    precision: str = "auto"
    providers: ProviderList | None = None
    num_threads: int | None = None
    num_streams: int = 1
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    color: NetworkColor | None = None
    activation: str = "auto"
    threshold: float | None = None
    output_key: str | None = None
    peel: bool = True
    cache: bool = True
    tile_pixels: int | None = None
    trust_code: bool = False

    def __post_init__(self) -> None:
        if self.precision != "auto":
            parse_precision(self.precision)
        if self.color not in (None, *NETWORK_COLORS):
            raise ValueError(f"color is {self.color!r}; expected one of {NETWORK_COLORS}")
        if self.activation not in ASKED_ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r}; expected one of {ASKED_ACTIVATIONS}"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is {self.threshold:g}; expected a probability between 0 and 1"
            )
        counts = {
            "num_threads": self.num_threads,
            "num_streams": self.num_streams,
            "tile_pixels": self.tile_pixels,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; it must be 1 or more")

    @property
    def given_preprocessing(self) -> tuple[str, ...]:
        """Names of the fields on preprocessing that were given."""
        return tuple(name for name in ("mean", "std", "color") if getattr(self, name) is not None)

    @property
    def given_meaning(self) -> tuple[str, ...]:
        """Names of the fields on what the output means that were given."""
        usual = {"activation": "auto", "threshold": None, "output_key": None}
        return tuple(name for name, value in usual.items() if getattr(self, name) != value)
