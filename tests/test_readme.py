"""What the README tells people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from kft.cli.group import COMMANDS, ROOT

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
LINES = [part.strip() for block in BLOCKS for line in block.splitlines() for part in line.split("#")[0].split("&&")]
TYPED = sorted({line for line in LINES if line.startswith("kft ")})


def test_the_two_lines_are_there() -> None:
    assert 'pip install -e ".[jax]" && kft run --backend jax' in README
    assert "pip install tox && tox" in README


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for line in TYPED} == set(COMMANDS)


@pytest.mark.parametrize("line", TYPED)
def test_a_line_of_the_readme_has_known_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = ROOT.get_command(click.Context(ROOT), name)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_example_script_is_the_one_that_is_tested() -> None:
    assert "examples/script.py" in README


def test_the_recipe_in_the_readme_is_valid() -> None:
    import yaml

    from kft import recipe

    found = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert found
    for text in found:
        recipe.validate(yaml.safe_load(text), "README")
