"""Read a checkpoint's weights without running anything of it, as `fcn-export` does."""

from __future__ import annotations

from fcn_export.load.checkpoint import Checkpoint, prefix_forms, read_checkpoint

__all__ = ["Checkpoint", "prefix_forms", "read_checkpoint"]
