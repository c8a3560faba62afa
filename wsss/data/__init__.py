"""Data sets: class lists, image labels, files on disk, splits, transforms. Submodules are imported by name."""
