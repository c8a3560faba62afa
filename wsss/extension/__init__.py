"""From seeds to whole objects: a random walk between cells that look alike, and a linear classifier of cells."""
