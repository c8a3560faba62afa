"""Small JSON files with what was measured, one for each method and image."""

import hashlib
import re
from pathlib import Path
from typing import Any

from wsss.data.files import read_json, write_json
from wsss.saliency import SaliencyMethod
from wsss.saliency.parse import to_expression


def load(path: Path, expected: str) -> dict[str, Any] | None:
    """What is stored at `path`, if it was made with the settings of the fingerprint `expected`."""
    if not path.is_file():
        return None
    stored: dict[str, Any] = read_json(path)
    return stored if stored.get("fingerprint") == expected else None


def save(path: Path, expected: str, values: dict[str, Any]) -> dict[str, Any]:
    """Writes `values` with their fingerprint, atomically, and returns both."""
    stored = {"fingerprint": expected, **values}
    write_json(path, stored)
    return stored


def slug(method: SaliencyMethod) -> str:
    """A folder name of a method: readable, and different for every `repr`."""
    words = re.sub(r"[^a-z0-9]+", "-", to_expression(method).lower()).strip("-")[:48].strip("-")
    return f"{words}-{hashlib.sha256(repr(method).encode()).hexdigest()[:8]}"
