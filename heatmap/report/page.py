"""The report as one HTML file that opens without a network: `report.html`.

Tables and pictures are in the page itself; the scripts in `template/` draw the charts, sort and
switch layers. A policy in the file allows its own scripts by their hashes and no connection at all,
so that a file name that slipped through the escaping could still do nothing.
"""

import base64
import hashlib
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.report import chart_data, figures, page_tables, phrases, reproduction
from heatmap.report.findings import Comparison, Gallery

_TEMPLATE = pathlib.Path(__file__).parent / "template"
_SCRIPTS = ("charts.js", "controls.js")


def write(path: pathlib.Path, comparison: Comparison, gallery: Gallery) -> None:
    """Writes the report, whole or not at all.

    Args:
      path: ends in `.html`.
      comparison: the numbers and sentences.
      gallery: the pictures; each of its parts may be empty.

    Raises:
      UserError: if the libraries of the extra `report` are not installed.
    """
    workdir.write_text(path, render(comparison, gallery))


def libraries() -> tuple[Any, Any, Any]:
    """Imports what the page needs beyond the core: Jinja2, MarkupSafe and Plotly's file of script.

    Raises:
      UserError: if the extra `report` is not installed.
    """
    try:
        import jinja2
        import markupsafe
        from plotly import offline
    except ImportError as error:
        raise UserError(
            f"The HTML report needs {error.name}: pip install -e '.[report]'. Where --out ends in "
            ".md, heatmap.report writes Markdown without it."
        ) from error
    return jinja2, markupsafe, offline


def render(comparison: Comparison, gallery: Gallery) -> str:
    """Returns the text of the report; `write` says of what."""
    jinja2, markupsafe, offline = libraries()
    # Trusted text of this package and its library, the only text that is not escaped.
    sources = [offline.get_plotlyjs(), *(_read(name) for name in _SCRIPTS)]
    scripts = [markupsafe.Markup(source) for source in sources]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["mark_form"] = figures.form
    environment.filters |= {
        "share": phrases.share,
        "px": phrases.px,
        "number": phrases.number,
        "percent": phrases.percent,
        "shares": lambda found: phrases.interval(found, phrases.share),
        "pixels": lambda found: phrases.interval(found, phrases.px),
        "numbers": lambda found: phrases.interval(found, phrases.number),
        "sortable": _sortable,
    }
    samples = [figures.example(comparison, e, "sample") for e in gallery.samples]
    data = chart_data.of(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison,
        data=data,
        start=data["start"],
        policy=_policy(scripts),
        scripts=scripts,
        style=markupsafe.Markup(_read("page.css")),
        summary=page_tables.summary_rows(comparison),
        tests=page_tables.tests_of_all_points(comparison),
        rows=page_tables.image_rows(comparison),
        several=any(image.instance for image in comparison.images),
        grouped=any(image.group not in ("", image.id) for image in comparison.images),
        failures=page_tables.failure_groups(comparison, gallery),
        samples=samples,
        stages=[figures.stage(shown) for shown in gallery.stages],
        maps_of=[of["method"] for of in samples[0]["maps"]] if samples else [],
        configs=[method.config.to_json() for method in comparison.methods],
        environment=reproduction.environment(),
        commands=reproduction.commands(comparison),
    )


def _read(name: str) -> str:
    return (_TEMPLATE / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Allows the page's own scripts, its styles and embedded pictures, and nothing else."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _sortable(value: float) -> str:
    """Writes a number for a script to sort by: nothing where it is not known."""
    if math.isnan(value):
        return ""
    return repr(value) if math.isfinite(value) else "Infinity"
