"""A table from a name to the place that holds it, open to other packages by entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kft.errors import KftError, unknown


@dataclass(frozen=True)
class Part:
    """One row of a registry.

    Attributes:
        path: `module:name` of the part.
        summary: one line for `kft list`.
        extra: the extra of the distribution that installs what it needs, or an empty string.
        needs: top-level modules that have to be importable.
    """

    path: str
    summary: str
    extra: str = ""
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Returns the needed modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def load(self) -> Any:
        """Imports the part and returns it."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


class Registry:
    """Finds parts of one kind by name: those of kft, and those other packages add by entry points."""

    def __init__(self, kind: str, group: str, parts: Mapping[str, Part]) -> None:
        self.kind = kind
        self.group = group
        self._own = dict(parts)

    def parts(self) -> dict[str, Part]:
        """Returns every part by name; kft's own cannot be replaced from outside."""
        added = {
            entry.name: Part(entry.value, f"from {entry.dist.name if entry.dist else entry.module}")
            for entry in importlib.metadata.entry_points(group=self.group)
        }
        return {**added, **self._own}

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts())

    def __contains__(self, name: object) -> bool:
        return name in self.parts()

    def __getitem__(self, name: str) -> Part:
        parts = self.parts()
        if name not in parts:
            raise KftError(unknown(self.kind, name, parts))
        return parts[name]

    def load(self, name: str) -> Any:
        """Imports the part called `name`.

        Raises:
            KftError: if there is none of that name, what it needs is not installed, or another package's part is broken.
        """
        part = self[name]
        if missing := part.missing():
            raise KftError(
                f"The {self.kind} '{name}' needs {', '.join(missing)}, not installed here. "
                f'Type: pip install "keras-finetune[{part.extra}]"'
            )
        try:
            return part.load()
        except (ImportError, AttributeError) as error:
            if name in self._own:
                raise
            raise KftError(
                f"The {self.kind} '{name}', {part.summary}, does not load from {part.path}: {error}. "
                "Repair or uninstall that package."
            ) from error
