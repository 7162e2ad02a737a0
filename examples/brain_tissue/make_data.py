"""Write the slices as pictures and label files, and all of them as a short video."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from examples.brain_tissue.data import CLASS_COLORS, CLASS_NAMES, Slices, load_slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["main", "write_data", "write_video"]

VIDEO_FPS = 25


def write_data(output: Path) -> None:
    """Write both sides of the split, the video and the classes into a folder.

    Files of the same names are replaced:

    - `images/`, `labels/`: the test slices as 8-bit PNGs with the same stems: pictures of three
      equal channels, as cameras and OpenCV have them, and class ids in one channel;
    - `train_images/`, `train_labels/`: the training slices;
    - `fly_through.mp4`: all slices from the neck up and back again;
    - `classes.json`: name and colour (RGB) of each class id.

    Raises:
        OSError: a file cannot be written.
    """
    for slices, prefix in ((load_slices("test"), ""), (load_slices("train"), "train_")):
        images_bgr = np.repeat(slices.images[..., None], 3, axis=-1)  # [S, H, W, 3]
        _write_pictures(slices, images_bgr, output / f"{prefix}images")
        _write_pictures(slices, slices.labels, output / f"{prefix}labels")
    write_video(load_slices("all").images, output / "fly_through.mp4")
    classes = [
        {"name": name, "color": list(color)}
        for name, color in zip(CLASS_NAMES, CLASS_COLORS, strict=True)
    ]
    (output / "classes.json").write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")


def write_video(images: NDArray[np.uint8], path: Path) -> None:
    """Write slices in order and back again, one a frame.

    Args:
        images: gray values, uint8 [S, H, W]; a black row or column makes an odd H or W even, as
            video codecs want it.
        path: an `.mp4` file; replaced if it is there.

    Raises:
        OSError: OpenCV cannot write the file.
    """
    _, height, width = images.shape
    even = np.pad(images, ((0, 0), (0, height % 2), (0, width % 2)))
    size_wh = (even.shape[2], even.shape[1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), VIDEO_FPS, size_wh)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {path} as MPEG-4. Is its folder there and writable?")
    for image in (*even, *even[-2:0:-1]):
        writer.write(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    writer.release()


def main() -> None:
    """Write the data and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder to write into")
    arguments = parser.parse_args()

    write_data(arguments.output)
    print(f"{arguments.output}:")
    for path in sorted(arguments.output.iterdir()):
        files = f", {len(list(path.iterdir()))} files" if path.is_dir() else ""
        print(f"  {path.name}{files}")


def _write_pictures(slices: Slices, pictures: NDArray[np.uint8], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, picture in zip(slices.indices, pictures, strict=True):
        path = folder / f"slice_{index:03d}.png"
        if not cv2.imwrite(str(path), picture):
            raise OSError(f"OpenCV cannot write {path}. Is the disk full?")


if __name__ == "__main__":
    main()
