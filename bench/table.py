"""Measures what the Speed table promises, row by row, and writes the table.

    pip install -e ".[torch,jax,tensorflow,bench]"
    python bench/table.py --output FOLDER --mrpc FOLDER_WITH_CSV
    python bench/table.py --output FOLDER --quick          # minutes: shows that all of it runs, measures nothing

--mrpc names a folder with train.csv, validation.csv and test.csv (columns sentence1, sentence2, label); without it the
data are tfds://glue/mrpc. Every piece is a file in FOLDER: the same command again goes on where it was interrupted, and
measures what failed once more. FOLDER then has table.md, table.json and table.html. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import first_step
import one_page
import speed

from kft import backend, recipe, rundir
from kft.cli.watching import watcher
from kft.comparison.bench import page, running
from kft.comparison.bench.settings import REFERENCES, Settings, backends_of
from kft.errors import KftError
from kft.progress import Progress
from kft.recipe import Recipe

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples" / "mrpc_minilm.yaml"
ROWS = ("training", "frozen", "predict", "start", "memory", "rows", "plan")
OF_ONE_BENCH = ("training", "predict", "memory")
TRAINABLE = ("head", f"top:{speed.TRAINED_BLOCKS}")
QUICK_STEPS = 8  # so many that a length comes twice


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        job = Job(options)
        job.measure()
        print(job.write())
    except KftError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted; what was measured is kept. Type the same command to go on.", file=sys.stderr)
        sys.exit(1)


def interrupt(number: int, frame: Any) -> NoReturn:
    """Makes a polite kill end the work as Ctrl-C does."""
    raise KeyboardInterrupt


def arguments() -> argparse.Namespace:
    """Returns what was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for pieces and table; it may hold them already"
    )
    parser.add_argument("--repeats", type=int, help="processes each (3)")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"what to measure now, of {','.join(ROWS)}")
    parser.add_argument("--mrpc", type=Path, help="folder with train.csv, validation.csv and test.csv of MRPC")
    parser.add_argument("--backends", help="as in torch,jax; all three without it")
    parser.add_argument("--quick", action="store_true", help="a few steps, once: shows that it runs, measures nothing")
    return parser.parse_args()


class Job:
    """The table in its folder.

    Attributes:
        folder: where pieces and table are.
        recipe: MRPC with MiniLM.
        backends: in the order asked for.
        rows: what is to be measured now.
        repeats: processes each.
        quick: whether a few steps are to do.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder, self.quick, self.progress = options.output, options.quick, watcher()
        self.repeats = options.repeats or (1 if self.quick else 3)
        self.backends = backends_of(options.backends)
        self.rows = [name.strip() for name in options.rows.split(",") if name.strip()]
        for name in self.rows:
            if name not in ROWS:
                raise KftError(f"Received --rows {name}; known are {', '.join(ROWS)}, as in --rows training,start")
        self.recipe = mrpc(options.mrpc)
        self._keep_recipe()

    def _keep_recipe(self) -> None:
        with rundir.explained(self.folder):
            (self.folder / "pieces").mkdir(parents=True, exist_ok=True)
        now = {"recipe": self.recipe.model_dump(mode="json"), "quick": self.quick}
        before = rundir.read_json(self.folder / "job.json")
        if before and before != now:
            raise KftError(f"'{self.folder}' holds a table of other data or another --quick. Give another --output.")
        rundir.write_json(self.folder / "job.json", now)
        rundir.write_text(self.recipe_file, self.recipe.dump())

    @property
    def recipe_file(self) -> Path:
        """The recipe as the commands read it."""
        return self.folder / "recipe.yaml"

    def measure(self) -> None:
        """Measures the rows asked for, cheap ones first; what fails is said, and the others go on."""
        kinds: dict[str, Callable[[], None]] = {
            "rows": self._many_rows,
            "start": self._start,
            "frozen": self._frozen,
            **dict.fromkeys(OF_ONE_BENCH, self._training),
            "plan": self._plan,
        }
        wanted = list(dict.fromkeys(kinds[name] for name in kinds if name in self.rows))
        for number, kind in enumerate(wanted, 1):
            self.progress.note(f"part {number} of {len(wanted)}: {kind.__name__.strip('_').replace('_', ' ')}")
            try:
                kind()
            except KftError as error:
                if isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                self.progress.note(str(error))

    def _training(self) -> None:
        steps = QUICK_STEPS if self.quick else None
        references = tuple(name for names in REFERENCES.values() for name in names)
        settings = Settings(self.recipe, "mrpc_minilm", self.backends, references, self.repeats, steps)
        bench(settings, self.folder / "training", self.progress)

    def _frozen(self) -> None:
        for trainable in TRAINABLE:
            changes: dict[str, Any] = {"model.trainable": trainable, "data.test": 0}
            if self.quick:
                changes |= {"data.limit": 64, "data.validation": 0.1}
            name = f"frozen-{trainable.replace(':', '-')}"
            settings = Settings(self.recipe.changed(changes), name, self.backends, (), self.repeats)
            bench(settings, self.folder / name, self.progress)

    def _start(self) -> None:
        for repeat in range(1, self.repeats + 1):
            for name in self.backends:
                piece = self._piece(f"start-{name}-{repeat}")
                if "second" in rundir.read_json(piece):
                    continue
                with self.progress.phase(f"first step, {name}, {repeat} of {self.repeats}"):
                    rundir.write_json(piece, first_step.measure([str(self.recipe_file)], name))

    def _many_rows(self) -> None:
        sizes = ["--rows", "20000", "--small", "2000"] if self.quick else []
        self._program("rows", ["rows.py", *sizes, "--json"])

    def _plan(self) -> None:
        fewer = ["train.epochs=1", "data.limit=64", "data.test=0"] if self.quick else []
        self._program(
            "plan",
            ["plan_accuracy.py", str(self.recipe_file), *fewer, "--backends", ",".join(self.backends), "--output"],
        )

    def _program(self, name: str, command: Sequence[str]) -> None:
        """Runs a program beside this one, which writes its figures to the file that its last option names."""
        piece = self._piece(name)
        if piece.is_file():
            return
        with self.progress.phase(name):
            full = [sys.executable, str(HERE / command[0]), *command[1:], str(piece.resolve())]
            code = subprocess.run(full, stdout=sys.stderr, check=False).returncode
        if not piece.is_file():
            raise KftError(f"bench/{command[0]} ended with {code} and left no figures.")

    def _piece(self, name: str) -> Path:
        return self.folder / "pieces" / f"{name}.json"

    def found(self) -> list[speed.Row]:
        """Returns the rows that the pieces allow; the others say that they are not measured."""
        training = self._bench("training")
        starts = {
            name: [read for repeat in range(1, self.repeats + 1) if (read := self._read(f"start-{name}-{repeat}"))]
            for name in self.backends
        }
        frozen = [
            row
            for trainable in TRAINABLE
            for row in speed.frozen(self._bench(f"frozen-{trainable.replace(':', '-')}"), trainable, self.backends)
        ]
        return [
            *speed.training(training),
            *frozen,
            *speed.predict(training),
            *speed.start(starts),
            *speed.memory(training),
            *speed.many_rows(self._read("rows")),
            *speed.plan(self._read("plan"), self.backends),
        ]

    def _bench(self, name: str) -> dict[str, Any] | None:
        return rundir.read_json(self.folder / name / "bench.json") or None

    def _read(self, name: str) -> dict[str, Any] | None:
        return rundir.read_json(self._piece(name)) or None

    def write(self) -> str:
        """Writes the table as Markdown, JSON and a page, and returns the Markdown and where it is."""
        rows, training = self.found(), self._bench("training")
        machine = training["machine"] if training else running.machine({})
        versions = training["versions"] if training else backend.versions()
        date = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
        said = self._said(date, machine, versions)
        text = "\n\n".join([*said, speed.markdown(rows)])
        rundir.write_text(self.folder / "table.md", text)
        values = {"date": date, "machine": machine, "versions": versions, "quick": self.quick, "repeats": self.repeats}
        rundir.write_json(self.folder / "table.json", {**values, "rows": [row.dump() for row in rows]})
        return f"{text}\nTable: {self.folder / 'table.md'}\n{self._page(said, rows)}"

    def _said(self, date: str, machine: dict[str, Any], versions: dict[str, str]) -> list[str]:
        where = (
            f"{date[:10]}, {machine['processor']}, {machine['cores']} cores, {page.written(machine['memory'], 'bytes')}"
        )
        lines = [
            f"Measured on {where}; {', '.join(f'{name} {version}' for name, version in versions.items())}.",
            f"Medians of {self.repeats} repeats in fresh processes, and their range; a ratio is of two processes of the same "
            "repeat, which ran in turn."
            if self.repeats > 1
            else "One repeat, which cannot tell speed from noise.",
        ]
        return (
            [*lines, "**A quick look at a few steps: it shows that all runs, and measures nothing.**"]
            if self.quick
            else lines
        )

    def _page(self, said: Sequence[str], rows: Sequence[speed.Row]) -> str:
        head = ["what", "against", "reach", "measured", "reached"]
        cells = [[row.what, row.against, row.reach, row.measured, row.reached] for row in rows]
        lines = [[cell.replace("`", "") for cell in line] for line in cells]
        said = [line.replace("**", "") for line in said]
        benches = {name: found for name in ("training", "frozen-head", "frozen-top-2") if (found := self._bench(name))}
        try:
            written = one_page.write(self.folder / "table.html", "The speed of kft", said, [(head, lines)], benches)
        except KftError as error:
            return str(error)
        return f"Page: {written}"


def mrpc(folder: Path | None) -> Recipe:
    """Returns the recipe of the table: the example's, with data from a folder where one is given.

    Raises:
        KftError: if the folder lacks a file.
    """
    if folder is None:
        return recipe.load(EXAMPLE)
    for name in ("train", "validation", "test"):
        if not (folder / f"{name}.csv").is_file():
            raise KftError(
                f"No {name}.csv in '{folder}': --mrpc names a folder with train.csv, validation.csv, test.csv."
            )
    return recipe.load(EXAMPLE, [f"data.source={json.dumps(str(folder.resolve()))}", "data.test=test"])


def bench(settings: Settings, folder: Path, progress: Progress) -> dict[str, Any]:
    """Begins a bench in a folder, or goes on with the one that is there.

    Raises:
        KftError: if that one has other settings.
        RunFailed: if it was interrupted, or nothing could be measured.
    """
    before = rundir.read_json(folder / "settings.json")
    if not before:
        return running.start(settings, folder, progress)
    if before != json.loads(json.dumps(settings.dump())):
        raise KftError(f"'{folder}' holds a bench of other backends, repeats or data. Give another --output.")
    return running.resume(folder, progress)


if __name__ == "__main__":
    main()
