"""Turn scores into labels: bilinear upsampling and argmax as one exact step."""

from __future__ import annotations

from fcn_deploy.head.upsample import load_kernels, upsample_argmax, upsample_confidence

__all__ = ["load_kernels", "upsample_argmax", "upsample_confidence"]
