"""Every shipped configuration parses, and every key in it exists."""

from pathlib import Path

import pytest
import yaml

from wsss.config import Config, to_dict
from wsss.options import parse_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def leaves(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted key -> value."""
    result: dict[str, object] = {}
    for key, value in tree.items():
        result |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_parses_to_what_it_says(path: Path) -> None:
    written = leaves(yaml.safe_load(path.read_text()))
    config = parse_config("run", ["--config", str(path)])
    assert isinstance(config, Config)
    parsed = leaves(to_dict(config))
    assert written.keys() <= parsed.keys()
    assert {key: parsed[key] for key in written} == written


def test_configurations_write_to_directories_of_their_own() -> None:
    written = [yaml.safe_load(path.read_text()) for path in CONFIGS]
    # without a data section: settings to be put after another configuration, which write where that one does
    outputs = [settings["output"] for settings in written if "data" in settings]
    assert len(set(outputs)) == len(outputs) >= 5
    assert not any("output" in settings for settings in written if "data" not in settings)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_says_in_a_comment_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
