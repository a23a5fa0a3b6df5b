"""Writes a comparison as report.md with its figures as PNG, to be read in a repository."""

import math
import pathlib
import re
from collections.abc import Iterable, Sequence

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from heatmap import workdir
from heatmap.report import pictures, plots
from heatmap.report.findings import (
    BOTH_WRONG,
    FIRST_ONLY,
    SECOND_ONLY,
    UNORDERED,
    Ablation,
    Comparison,
    Gallery,
)
from heatmap.report.phrases import interval, number, px, share

_DPI = 110
_MOST_CASES = 10  # rows of a table of failures; the figures show pictures besides
_MARKUP = re.compile(r"([\\`*_\[\]|~$])|(?<=:)(//)|(?<=www)(\.)")  # the last two: bare links
_BLOCK = re.compile(r"^(\s*\d*)([#=]|[-+.)](?=[\s-]|$))")  # at the start: a heading, list or rule


def escape(text: str) -> str:
    """Keeps text, such as a file's name, from being read as Markdown, HTML or a link."""
    text = "".join(c if c.isprintable() else " " for c in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _BLOCK.sub(r"\1\\\2", _MARKUP.sub(r"\\\g<0>", text))


def write(
    path: pathlib.Path, comparison: Comparison, gallery: Gallery, figures: str = "figures"
) -> None:
    """Writes the report, and its figures into a folder beside it.

    Args:
      path: of the Markdown file.
      comparison: numbers and sentences.
      gallery: pictures; may be empty.
      figures: name of the folder.
    """
    page = _Page(path, comparison, figures)
    names = " and ".join(escape(method.name) for method in comparison.methods)
    page.add(f"# {names} on {escape(comparison.split)}")
    page.sentences("summary")
    _accuracy(page)
    _keypoints(page)
    _failures(page, gallery)
    _maps(page, gallery)
    _causes(page)
    for i, found in enumerate(comparison.ablations):
        _ablation(page, i, found)
    _settings(page)
    page.heading("How the numbers were made")
    page.sentences("statistics")
    workdir.write_text(path, "\n\n".join(page.parts) + "\n")


class _Page:
    """The parts of a Markdown file in the making, and where its figures go."""

    def __init__(self, path: pathlib.Path, comparison: Comparison, figures: str):
        self.parts: list[str] = []
        self.comparison = comparison
        self._folder = path.parent / figures

    def add(self, part: str) -> None:
        self.parts.append(part)

    def heading(self, text: str) -> None:
        self.add(f"## {text}")

    def sentences(self, section: str) -> None:
        """Adds a section of the comparison's text, a list if it has several sentences."""
        text = [escape(sentence) for sentence in self.comparison.text.get(section, ())]
        if text:
            self.add(text[0] if len(text) == 1 else "\n".join(f"- {line}" for line in text))

    def figure(self, name: str, figure: Figure, alt: str) -> None:
        """Saves a figure and shows it."""
        with workdir.replacing(self._folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=_DPI, format="png")
        plt.close(figure)
        self.add(f"![{escape(alt)}]({self._folder.name}/{name}.png)")

    def command(self, introduction: str, command: str) -> None:
        """Adds a command line as it is: what is indented is not marked up."""
        self.add(introduction)
        self.add("    " + "".join(c if c.isprintable() else " " for c in command))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Adds a table of plain text."""
        text = [[*map(escape, line)] for line in (header, *rows)]
        lines = [text[0], ["---"] * len(header), *text[1:]]
        self.add("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _accuracy(page: _Page) -> None:
    comparison = page.comparison
    page.heading("Percentage of correct keypoints")
    methods = ", ".join(method.name for method in comparison.methods)
    page.figure("pck", plots.pck(comparison), f"PCK over the threshold of {methods}")
    rows = []
    for curve in comparison.curves:
        order = ", order of pairs disregarded" if curve.order == UNORDERED else ""
        cells = [interval(curve.pck.at(t), share) for t in comparison.quoted]
        rows.append([curve.method + order, *cells])
    if comparison.ceiling is not None:
        cells = [interval(comparison.ceiling.at(t), share) for t in comparison.quoted]
        rows.append(["ceiling of what minds the order", *cells])
    page.table(["", *(f"PCK@{t:g}" for t in comparison.quoted)], rows)
    page.sentences("ceiling")
    if comparison.tests:
        page.add("Differences, each first minus second, with p-values adjusted by Holm:")
        page.table(
            ["first", "second", "quantity", "difference", "p", "adjusted p", "clear"],
            [
                [
                    test.first,
                    test.second,
                    _quantity(test.quantity, test.threshold)
                    + (", order disregarded" if test.order == UNORDERED else ""),
                    interval(test.difference, share if test.quantity == "pck" else px),
                    number(test.p),
                    number(test.adjusted),
                    "yes" if test.is_clear else "no",
                ]
                for test in comparison.tests
                if not test.point
            ],
        )
    page.sentences("curves")


def _quantity(quantity: str, threshold: float) -> str:
    return f"PCK@{threshold:g}" if quantity == "pck" else "mean error"


def _keypoints(page: _Page) -> None:
    comparison = page.comparison
    page.heading("Keypoints")
    page.sentences("keypoints")
    page.figure(
        "keypoints", plots.keypoints(comparison), "Median error and PCK of each keypoint as bars"
    )
    page.table(
        ["method", "keypoint", "mean", "median", "95th percentile", "bias x", "bias y", "slope"],
        [
            [
                k.method,
                k.point,
                *(interval(v, px) for v in (k.mean, k.median, k.p95, k.bias_x, k.bias_y)),
                interval(k.slope, number),
            ]
            for k in comparison.keypoints
        ],
    )
    page.figure(
        "bias", plots.bias(comparison), "Error vectors of each keypoint with their mean as an arrow"
    )


def _failures(page: _Page, gallery: Gallery) -> None:
    comparison = page.comparison
    points = comparison.methods[0].points.names
    if gallery.samples:
        page.heading("Samples")
        figure = pictures.examples(comparison, gallery.samples)
        page.figure("samples", figure, "Test pictures with true points and those of each method")
    if comparison.failures:
        page.heading("Failures")
        page.sentences("failures")
    for i, found in enumerate(comparison.failures):
        titles = {
            FIRST_ONLY: f"{found.first} right, {found.second} wrong",
            SECOND_ONLY: f"{found.second} right, {found.first} wrong",
            BOTH_WRONG: f"{found.first} and {found.second} both wrong",
        }
        for group, title in titles.items():
            page.add(f"### {escape(title)}: {found.counts[group]} points")
            cases = found.cases[group][:_MOST_CASES]
            if not cases:
                continue
            names = (found.first, found.second)
            page.table(
                ["picture", "keypoint", *(f"{what}, {n}" for n in names for what in _COLUMNS)],
                [
                    [
                        comparison.images[case.row].id,
                        points[case.point],
                        *(
                            cell
                            for m in range(2)
                            for cell in (
                                px(case.errors[m]),
                                _or_dash(case.scores[m]),
                                _or_dash(case.entropies[m]),
                            )
                        ),
                    ]
                    for case in cases
                ],
            )
            shown = gallery.failures.get((found.first, found.second, group), ())
            if shown:
                figure = pictures.examples(comparison, shown)
                page.figure(f"failures_{i}_{group}", figure, f"The worst pictures: {title}")


_COLUMNS = ("error", "score", "entropy")


def _or_dash(value: float) -> str:
    return "–" if math.isnan(value) else number(value)


def _maps(page: _Page, gallery: Gallery) -> None:
    comparison = page.comparison
    for m, method in enumerate(comparison.methods):
        grown = [stage for stage in gallery.stages if stage.method == method.name]
        learned = [e for e in gallery.samples if e.maps[m] is not None]
        if grown or learned:
            page.heading(f"Maps of {escape(method.name)}")
        if learned:
            figure = pictures.maps(learned[0], m, method.points)
            page.figure(f"maps_{m}", figure, f"The map of each keypoint by {method.name}")
        if grown:
            figure = pictures.stages(grown, method.points)
            page.figure(f"stages_{m}", figure, f"Maps of {method.name} while it trained")


def _causes(page: _Page) -> None:
    comparison = page.comparison
    page.heading("Why")
    page.sentences("why")
    page.heading("Does the score tell the error?")
    page.sentences("calibration")
    if comparison.calibrations:
        page.figure(
            "calibration",
            plots.calibration(comparison),
            "Share of right points and median error over score and entropy",
        )
    page.heading("Error budget")
    page.sentences("budget")
    if comparison.budgets:
        page.figure("budget", plots.budget(comparison), "Squared error by its source, stacked")
    if any(method.log for method in comparison.methods):
        page.heading("Training")
        page.sentences("training")
        page.figure("training", plots.training(comparison), "Losses over epochs")


def _ablation(page: _Page, i: int, found: Ablation) -> None:
    page.heading(f"Ablation: {escape(found.name)}")
    page.add(escape(page.comparison.text["ablation"][i]))
    page.table(
        [*found.fields, "runs", *found.metrics],
        [
            [
                *(value or "–" for value in row.settings),
                str(row.runs),
                *(
                    number(mean) + ("" if math.isnan(spread) else f" ± {number(spread)}")
                    for mean, spread in zip(row.means, row.deviations, strict=True)
                ),
            ]
            for row in found.rows
        ],
    )
    if found.rows and found.metrics:
        page.figure(
            f"ablation_{i}", plots.ablation(found), f"Scores of {found.name} by its settings"
        )


def _settings(page: _Page) -> None:
    comparison = page.comparison
    page.heading("Settings")
    page.table(
        ["", *(method.name for method in comparison.methods)],
        [
            ["folder", *(str(method.folder) for method in comparison.methods)],
            *([setting.field, *setting.values] for setting in comparison.settings),
        ],
    )
    if comparison.command:
        page.command("All runs and this report were made by", comparison.command)
