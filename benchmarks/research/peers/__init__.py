"""The same frames through this project and through what others use, side by side in one run."""
