"""Compares runs on one page: curves, what changed, regions, calibration, classes.

sdd report runs/plain runs/kd runs/sdd_kd --output=report

A RUN is a run's folder, or a folder with runs below it. Runs that differ in their seed alone belong together: their
spread is shown. The page is one HTML file that needs nothing beside it and no internet; its figures are also written as
PNG files. It asks every network, and the runs' teachers, for every test image, so the data must be there. It is drawn
with matplotlib, Jinja2 and scikit-learn: pip install -e ".[report]". docs/report.md says what each figure shows.
"""

from absl import flags

from sdd_jax.own import ALLOW
from sdd_jax.reporting import write_report

ARGUMENTS = ("RUN", "...")


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("output", "report", "A folder, which gets report.html, or an .html file.")
    flags.DEFINE_string("data_path", None, "Where the data set's files are; where the runs found them if left out.")
    flags.DEFINE_list("allow", [], ALLOW)


def main(*runs: str) -> None:
    """Runs the command."""
    page = write_report(runs, flags.FLAGS.output, data_path=flags.FLAGS.data_path, allow=flags.FLAGS.allow)
    size = page.stat().st_size / 2**20
    print(f"{page}: {size:.1f} MiB, needs no internet; its figures are beside it as {page.stem}_*.png")
