"""The page of a bench: one HTML file that needs no other."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from kft import recipe as recipes
from kft import rundir
from kft.comparison.bench import rows
from kft.comparison.bench.figures import written
from kft.errors import KftError

NEEDED = ("jinja2", "matplotlib")


def write(found: Mapping[str, Any], path: Path) -> Path:
    """Writes the page of a bench.

    Args:
        found: what `bench.json` holds.
        path: the file to write.

    Raises:
        KftError: if what draws the page is not installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise KftError(
            f'No page was written: {" and ".join(missing)} not installed here. Type: pip install "keras-finetune[bench]" '
            f"and then: kft bench --resume {path.parent}"
        )
    rundir.write_text(path, html(found))
    return path


def html(found: Mapping[str, Any]) -> str:
    """Returns the page as text."""
    import jinja2

    from kft.comparison.bench import plots

    source = (files("kft") / "comparison" / "bench" / "bench.html").read_text(encoding="utf8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    page: str = template.render(
        found=found,
        name=found["settings"]["name"],
        tables=[
            ("Figures", rows.figures(found)),
            ("Quality", rows.quality(found)),
            ("Seconds a phase", rows.phases(found)),
        ],
        plots=plots.every(found),
        reasons=rows.reasons(found),
        notes=rows.notes(found),
        machine=machine(found),
        versions=found["versions"],
        recipe=recipes.validate(found["settings"]["recipe"], "recipe").dump(),
    )
    return page


def machine(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the bench ran on, as name and value."""
    here, settings = found["machine"], found["settings"]
    devices = dict.fromkeys(device for each in here["devices"].values() for device in each)
    lines = [
        ("date", found["date"].replace("T", " ")),
        ("processor", f"{here['processor']}, {here['cores']} cores"),
        ("memory", written(here["memory"], "bytes")),
        ("system", here["system"]),
        ("devices", ", ".join(devices) or "-"),
        ("repeats", f"{settings['repeats']}, order shuffled by seed {settings['seed']}"),
    ]
    return [line for line in lines if line[1] != "-"]
