"""A finished or running folder turned into pages, tables, comparisons."""

from pathlib import Path

from ffcv_r50.logs.console import Console
from ffcv_r50.report import folder, page


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
        page.write(folder.read(run), run / page.NAME)
    except Exception as error:  # whatever it is, nobody's training failed by it
        reason = " ".join(str(error).split()) or type(error).__name__
        console.warn(
            f"no report was written: {reason}; python -m ffcv_r50.report {run} tries again"
        )
