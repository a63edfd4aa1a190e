"""The report as one HTML file that needs nothing else: no network, no other file."""

import base64
import hashlib
import time
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import ffcv_r50
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write
from ffcv_r50.logs.console import Console
from ffcv_r50.report import batches, course, folder, samples, sets
from ffcv_r50.report.folder import Run
from ffcv_r50.report.head import head
from ffcv_r50.report.provenance import provenance

HERE = Path(__file__).parent
NAME = "report.html"


def render(run: Run, price: float | None = None) -> str:
    """The page. What the run has no data for is left out.

    Args:
        run: to report on.
        price: of an hour of one GPU, in any currency.
    """
    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Autoescaping: names of classes, paths and commands are text, whatever they hold. No other script
    # than ours may run in the page, should one ever get in.
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found, names = run.predictions, run.class_names
    parts = {
        "curves": course.curves(run),
        "speed": course.speed(run),
        "evaluation": run.evaluation if run.evaluation and len(run.evaluation.sets) > 1 else None,
        "classes": samples.classes(found, names) if found else None,
        "confusions": samples.confusions(run, found, names) if found else None,
        "galleries": samples.galleries(run, found, names) if found else [],
        "calibration": samples.calibration(run, found) if found else None,
        "batches": [*batches.hardest(run), *batches.first_and_last(run)],
        "provenance": provenance(run),
    }
    titles = {
        "course": "Course",
        "speed": "Speed",
        "evaluation": "Evaluation sets",
        "classes": "Classes",
        "confusions": "Confusions",
        "images": "Images",
        "calibration": "Calibration",
        "provenance": "Provenance",
    }
    there = {
        **parts,
        "course": True,
        "speed": True,
        "images": bool(parts["galleries"] or parts["batches"]),
    }
    return environment.get_template("page.html").render(
        **parts,
        set_cells=sets.cells,
        set_head=sets.HEAD,
        head=head(run, price),
        marks=course.marks(run),
        contents=[(key, title) for key, title in titles.items() if there[key]],
        style=Markup((HERE / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=ffcv_r50.__version__,
        path=run.path.resolve(),
        now=time.strftime("%Y-%m-%d %H:%M"),
    )


def save(output: Path, content: bytes) -> None:
    """A file, which appears when it is whole; its folder is made.

    Raises:
        UserError: it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error


def write(run: Run, output: Path, price: float | None = None) -> None:
    """:func:`render` to a file.

    Raises:
        UserError: it cannot be written.
    """
    save(output, render(run, price).encode("utf-8", "replace"))  # paths may be any bytes


def at_the_end(path: str, console: Console) -> None:
    """Write the page of a run that has just finished, on rank 0; the run is no less finished without.

    Args:
        path: of the run's folder.
        console: is told where the page cannot be made; the silent one of other ranks writes none.
    """
    if not console.enabled:
        return
    run = Path(path)
    try:
        write(folder.read(run), run / NAME)
    except Exception as error:  # whatever it is, nobody's training failed by it
        reason = " ".join(str(error).split()) or type(error).__name__
        console.warn(
            f"no report was written: {reason}; python -m ffcv_r50.report {run} tries again"
        )
