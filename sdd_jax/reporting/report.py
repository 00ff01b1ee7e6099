"""The report itself: runs in, one HTML page and its figures out."""

from collections.abc import Sequence
from pathlib import Path

from sdd_jax.reporting import page
from sdd_jax.reporting.gather import find_runs, group_runs
from sdd_jax.reporting.pictures import paint_all
from sdd_jax.reporting.study import make_study


def write_report(runs: Sequence[str | Path], output: str | Path = "report", *, data_path: str | None = None) -> Path:
    """Compares runs on one self-contained HTML page.

    Args:
      runs: folders of runs, or folders with runs below them; runs that differ in their seed alone belong together.
      output: a folder, which gets report.html, or an .html file; the figures lie beside it as PNG files.
      data_path: where the data set's files are; None: where the runs found them.

    Returns:
      The page's path.

    Raises:
      ValueError: if a folder holds no run, the runs are not on the same data, a run's network does not fit, or
        the page's place holds something else.
      FileNotFoundError: if the data are missing; it says how to get them.
      ImportError: without matplotlib or Jinja2; it says how to get them.
    """
    page.check_packages()
    target = page.place(Path(output))
    study = make_study(group_runs(find_runs([Path(run) for run in runs])), data_path)
    return page.write(study, paint_all(study), target)
