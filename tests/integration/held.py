"""``wsss`` that stands still once it has written some files: ``python held.py DESCRIPTOR COUNT PATTERN WORDS...``.

Every file of a run is written to a temporary name and renamed. After the COUNT-th rename to a path that matches PATTERN
the process writes a byte to the DESCRIPTOR and waits for its standard input to end: whoever started it can kill it at
a known point.
"""

import os
import sys
from fnmatch import fnmatch
from typing import Any

from wsss.cli import main

DESCRIPTOR, COUNT, PATTERN, *WORDS = sys.argv[1:]
rename, left = os.replace, int(COUNT)


def rename_and_hold(source: Any, target: Any, **options: Any) -> None:
    """``os.replace`` that does not return from the last of the renames."""
    global left
    rename(source, target, **options)
    if fnmatch(os.fspath(target), PATTERN):
        left -= 1
        if left == 0:
            os.write(int(DESCRIPTOR), b".")
            os.read(0, 1)


if __name__ == "__main__":
    os.replace = rename_and_hold
    sys.exit(main(WORDS))
