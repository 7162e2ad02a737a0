"""Build TensorRT and TensorRT-RTX plans from ONNX graphs, and prove what they hold."""

from __future__ import annotations

from fcn_export.engine.build import BuiltPlan, build_engine
from fcn_export.engine.build_progress import BuildProgress
from fcn_export.engine.config import BuildConfig
from fcn_export.engine.profiles import EngineProfile, InputShapes, image_profile

__all__ = [
    "BuildConfig",
    "BuildProgress",
    "BuiltPlan",
    "EngineProfile",
    "InputShapes",
    "build_engine",
    "image_profile",
]
