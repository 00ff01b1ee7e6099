"""The page: one HTML file by Jinja2, everything in it, and the figures beside it as PNG files."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sdd_jax._version import __version__
from sdd_jax.reporting import measures
from sdd_jax.reporting.cards import data_address, make_galleries
from sdd_jax.reporting.figures import INSTALL
from sdd_jax.reporting.gather import method_name
from sdd_jax.reporting.measures import Spread
from sdd_jax.reporting.pictures import Pictures
from sdd_jax.reporting.study import Study, pairs, table

NAME, MARK = "report.html", '<meta name="generator" content="sdd_jax report'
SHOWN_CLASSES = 40  # of the table of classes, at most: those that changed most


def check_packages() -> None:
    """``ImportError``, before any work is done, if what the report is drawn with is not installed."""
    for module in ("matplotlib", "jinja2", "sklearn"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f"the report needs {module}: {INSTALL}") from error


def place(output: Path) -> Path:
    """The page's file for --output; ``ValueError`` if something else is there."""
    file = output if output.suffix.lower() in (".html", ".htm") else output / NAME
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name a file for the page, or another folder")
    if file.exists() and MARK not in file.read_text(errors="replace")[:2000]:
        raise ValueError(f"{file} is there and no report: it is not overwritten, give --output another place")
    return file


def write(study: Study, pictures: Pictures, file: Path) -> Path:
    """Writes the page to ``file`` and its figures beside it, as STEM_NAME.png."""
    galleries = make_galleries(study)
    text = render(study, pictures, galleries)
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        (file.parent / f"{file.stem}_{name}.png").write_bytes(picture.light)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
    return file


def render(study: Study, pictures: Pictures, galleries: Any) -> str:
    """The page's text."""
    return template("page.html").render(
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        dataset=study.dataset.name,
        images=len(study.labels),
        classes=study.dataset.num_classes,
        select_on=sorted({group.config["data.select_on"] for group in study.groups}),
        rows=table(study),
        pictures={
            name: {"light": data_address(picture.light), "dark": data_address(picture.dark), "alt": picture.alt}
            for name, picture in pictures.items()
        },
        galleries=galleries,
        class_tables=[class_table(study, number) for number in range(len(pairs(study)))],
        runs=[_run(run) for group in study.groups for run in group.runs],
        several=any(len(group.runs) > 1 for group in study.groups),
        notes=list(dict.fromkeys(study.notes)),
    )


def template(name: str) -> Any:
    """One of the templates beside this file; values are escaped in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sdd_jax.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["spread"] = spread_text
    return environment.get_template(name)


def spread_text(value: Spread | None, digits: int = 2) -> str:
    """Mean and standard deviation; a dash where there is nothing."""
    if value is None:
        return "–"
    return f"{value.mean:.{digits}f}" + (f" ± {value.sd:.{digits}f}" if value.sd is not None else "")


def class_table(study: Study, number: int) -> dict[str, Any]:
    """Accuracy per class of both sides of a pair, those that gained most first."""
    before, after = pairs(study)[number]
    sides = [
        100 * np.array([measures.class_accuracy(logits, study.labels) for logits in study.logits(group)])
        for group in (before, after)
    ]
    change = sides[1].mean(0) - sides[0].mean(0)
    order = [int(kind) for kind in np.argsort(-change, kind="stable") if np.isfinite(change[kind])]
    left_out = max(0, len(order) - SHOWN_CLASSES)
    if left_out:
        order = order[: SHOWN_CLASSES // 2] + order[-SHOWN_CLASSES // 2 :]
    counts = np.bincount(study.labels, minlength=study.dataset.num_classes)
    rows = [
        {
            "name": study.dataset.class_names[kind],
            "images": int(counts[kind]),
            "before": measures.spread(sides[0][:, kind].tolist()),
            "after": measures.spread(sides[1][:, kind].tolist()),
            "change": f"{change[kind]:+.2f}".replace("-", "−"),
        }
        for kind in order
    ]
    figure = f"classes_{number + 1}"
    return {"before": before.label, "after": after.label, "rows": rows, "left_out": left_out, "figure": figure}


def _run(run: Any) -> Mapping[str, Any]:
    environment = run.environment
    devices, versions = environment.get("devices", {}), environment.get("versions", {})
    return {
        "folder": str(run.folder),
        "method": method_name(run.config["method"]),
        "seed": run.seed,
        "epochs": f"{run.results['last']['epoch']:.0f} of {run.config['epochs']}",
        "last": f"{100 * run.results['last']['accuracy']:.2f}",
        "best": f"{100 * run.results['best']['accuracy']:.2f} (epoch {run.results['best']['epoch']:.0f})",
        "commit": (environment.get("commit") or "–").partition("+")[0][:10],
        "changed": "+" in (environment.get("commit") or ""),
        "device": f"{devices.get('count', '–')} x {devices.get('kind', '–')}",
        "jax": versions.get("jax", "–"),
        "seconds": f"{run.results['seconds']:.0f}" if "seconds" in run.results else "–",
    }
