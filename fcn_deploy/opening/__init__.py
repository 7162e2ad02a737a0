"""From a path to an opened network: which file, which backend, how to feed and read it."""
