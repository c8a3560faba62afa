"""``python train.py [...]`` is ``wsss run [...]``; without arguments it runs configs/shapes.yaml."""

import sys
from pathlib import Path

from wsss.cli import main

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "shapes.yaml"

if __name__ == "__main__":
    sys.exit(main(["run", *(sys.argv[1:] or ["--config", str(DEFAULT_CONFIG)])]))
