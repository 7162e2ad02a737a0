"""Scores to labels: bilinear upsampling and argmax as one exact step."""

from __future__ import annotations

from fcn_deploy.head.upsample import upsample_argmax, upsample_confidence

__all__ = ["upsample_argmax", "upsample_confidence"]
