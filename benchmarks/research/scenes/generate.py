"""Draw a seeded scene and its labels: leaves that cover each other, textured, blurred and noisy.

Occluding shapes whose sizes follow a power law ("dead leaves") have the statistics of natural
images: edges, and a spectrum that falls as 1/f (Lee, Mumford and Huang, IJCV 41, 2001).
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from fcn_deploy.names import Array

__all__ = ["GENERATOR_VERSION", "NUM_CLASSES", "make_scene", "make_scenes"]

GENERATOR_VERSION = 1
"""Raised when the same seed gives another scene, so that networks are trained anew."""

NUM_CLASSES = 21
"""The ground, 0, and twenty kinds of leaf: as many as PASCAL VOC has."""

_SMALLEST_PX = 14.0
_LEAVES_PER_PIXEL = 1 / 2600
_TILE_PX = 256
_HUES = 10  # each in a light and a dark kind with another texture


def make_scene(height: int, width: int, seed: int) -> tuple[Array, Array]:
    """Make one scene.

    Args:
        height, width: in px.
        seed: the same seed, height and width give the same scene.

    Returns:
        The frame, uint8 [height, width, 3] BGR, and its labels, uint8 [height, width] in
        0..`NUM_CLASSES` - 1.
    """
    rng = np.random.default_rng((GENERATOR_VERSION, seed, height, width))
    labels, shades = _leaves(rng, height, width)
    frame = _textured(rng, labels)
    frame *= shades[..., None]
    frame *= _light(rng, height, width)[..., None]
    cv2.GaussianBlur(frame, (0, 0), float(rng.uniform(0.4, 0.9)), dst=frame)
    noise = np.empty((height, width, 3), np.int8)
    cv2.setRNGSeed(int(rng.integers(1 << 30)))
    cv2.randn(noise, np.zeros(3), np.full(3, 3.0))
    frame += noise
    return np.clip(frame, 0, 255).astype(np.uint8), labels


def make_scenes(count: int, height: int, width: int, seed: int) -> tuple[Array, Array]:
    """Make several: frames uint8 [count, height, width, 3] and labels [count, height, width]."""
    scenes = [make_scene(height, width, seed + index) for index in range(count)]
    return np.stack([frame for frame, _ in scenes]), np.stack([labels for _, labels in scenes])


def _leaves(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Throw leaves from the largest to the smallest: labels, and each leaf's own brightness."""
    labels = np.zeros((height, width), np.uint8)
    shades = np.ones((height, width), np.float32)
    count = max(3, round(height * width * _LEAVES_PER_PIXEL))
    # the density of radii falls as r^-3, as in natural images; the largest is cut
    largest = 0.35 * min(height, width)
    smallest = min(_SMALLEST_PX, largest / 2)
    share = rng.uniform(0, 1, count)
    radii = smallest / np.sqrt(1 - share * (1 - (smallest / largest) ** 2))
    for radius in np.sort(radii)[::-1]:
        outline = _outline(rng, float(radius)) + rng.uniform((0, 0), (width, height))
        points = np.round(outline).astype(np.int32)
        cv2.fillPoly(labels, [points], int(rng.integers(NUM_CLASSES)))
        cv2.fillPoly(shades, [points], float(rng.uniform(0.75, 1.2)))
    return labels, shades


def _outline(rng: np.random.Generator, radius: float) -> Array:
    """Make an ellipse, a polygon or a wavy blob around the origin: float64 [points, 2]."""
    corners = int(rng.choice([3, 4, 5, 24, 24, 24]))
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = np.full(corners, radius)
    if corners == 24:
        waves = rng.integers(2, 5)
        reach *= 1 + rng.uniform(0, 0.25) * np.sin(waves * angles + rng.uniform(0, 6.28))
    points = np.stack([np.cos(angles) * reach, np.sin(angles) * reach * rng.uniform(0.4, 1)], 1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    turned: Array = points @ rotation
    return turned


def _textured(rng: np.random.Generator, labels: Array) -> Array:
    """Paint every class with its texture, shifted at random: float32 [H, W, 3]."""
    height, width = labels.shape
    frame = np.empty((height, width, 3), np.float32)
    tiles = _tiles()
    down, across = -(-height // _TILE_PX) + 1, -(-width // _TILE_PX) + 1
    for label in np.unique(labels):
        top, left = rng.integers(_TILE_PX, size=2)
        spread = np.tile(tiles[label], (down, across, 1))[top:, left:][:height, :width]
        cv2.copyTo(np.ascontiguousarray(spread), (labels == label).astype(np.uint8), frame)
    return frame


@functools.cache
def _tiles() -> tuple[Array, ...]:
    """One texture a class, float32 [256, 256, 3], that repeats without a seam."""
    return tuple(_tile(label) for label in range(NUM_CLASSES))


def _tile(label: int) -> Array:
    rng = np.random.default_rng((GENERATOR_VERSION, label))
    row, column = np.meshgrid(np.arange(_TILE_PX), np.arange(_TILE_PX), indexing="ij")
    if label == 0:
        base, pattern = np.array([95, 120, 130]), np.zeros((_TILE_PX, _TILE_PX))
    else:
        kind = label - 1
        hue, dark = 180 * (kind % _HUES) // _HUES, kind // _HUES
        pixel = np.array([[[hue, 190 - 60 * dark, 215 - 85 * dark]]], np.uint8)
        base = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float64)
        # whole numbers of waves in a tile, so that it repeats
        waves = rng.integers(12, 40, size=2) * 2 * np.pi / _TILE_PX
        pattern = np.sin(row * waves[0] + (column * waves[1] if dark else 0))
        if kind % 3 == 0:
            pattern = np.sign(pattern * np.sin(column * waves[1]))
    grain = np.real(np.fft.ifft2(np.fft.fft2(rng.standard_normal(row.shape)) * _one_over_f()))
    grain /= grain.std()
    tile: Array = (base * (1 + 0.16 * pattern + 0.08 * grain)[..., None]).astype(np.float32)
    return tile


def _one_over_f() -> Array:
    frequency = np.hypot(np.fft.fftfreq(_TILE_PX)[:, None], np.fft.fftfreq(_TILE_PX)[None])
    frequency[0, 0] = np.inf  # no mean
    falling: Array = 1 / frequency
    return falling


def _light(rng: np.random.Generator, height: int, width: int) -> Array:
    """Make soft light and shade, about 1: float32 [H, W]."""
    coarse = rng.normal(0, 0.16, (5, 5)).astype(np.float32)
    light: Array = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    light += np.float32(rng.uniform(0.85, 1.1))
    return light
