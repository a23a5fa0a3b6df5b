"""report.html without a browser: what is in the file, and what is not."""

import base64
import dataclasses
import html.parser
import io
import json
import pathlib
import re
import shlex
import sys
import tomllib

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from heatmap import command_line
from heatmap.config import from_mapping
from heatmap.errors import UserError
from heatmap.report import __main__ as command
from heatmap.report import chart_data, figures, page, phrases, reproduction
from tests import reported

pytest.importorskip("jinja2")
pytest.importorskip("plotly")

ROOT = pathlib.Path(__file__).parents[1]


class Parsed(html.parser.HTMLParser):
    """Every tag with its attributes, the visible text and the scripts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        (self.scripts if self.inside in ("script", "style") else self.text).append(data)

    def attributes(self, name):
        return [attributes[name] for _, attributes in self.tags if name in attributes]


@pytest.fixture(scope="module")
def comparison():
    return reported.comparison()


@pytest.fixture(scope="module")
def text(comparison):
    return page.render(comparison, reported.gallery(comparison))


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_names_stay_text(parsed):
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 4  # the data, the library and two of our own
    assert "img" not in tags
    assert not [name for _, a in parsed.tags for name in a if name.startswith("on")]
    shown = "".join(parsed.text)
    for name in (reported.SCRIPT, reported.CLOSING, *reported.NAMES):
        assert name in shown


def test_data_for_the_scripts_cannot_end_them(text, comparison):
    start = text.index('<script type="application/json"')
    data = text[text.index(">", start) + 1 : text.index("</script>", start)]
    assert "<" not in data
    read = json.loads(data)
    assert read["methods"] == list(reported.NAMES)
    assert read["points"][3] == reported.CLOSING
    assert read == json.loads(json.dumps(chart_data.of(comparison)))


def test_nothing_is_fetched(text, parsed):
    for name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
        assert [v for v in parsed.attributes(name) if not v.startswith(("data:", "#"))] == []
    assert "link" not in [t for t, a in parsed.tags if a.get("rel") == "stylesheet"]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for t, a in parsed.tags if t == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.split("style-src")[0]
    assert policy.count("sha256-") == 3


def test_file_is_not_large(text):
    assert len(text.encode()) < 6e6  # of which the charts' library has 4.8


def test_every_control_has_a_name_and_headings_go_down_by_one(parsed):
    labelled = set(parsed.attributes("for"))
    depth = wrapped = 0
    for tag, attributes in parsed.tags:
        if re.fullmatch("h[1-6]", tag):
            assert int(tag[1]) <= depth + 1
            depth = int(tag[1])
        if tag in ("input", "select"):
            wrapped = "data-layer" in attributes or "data-curve" in attributes
            wrapped |= "name" in attributes or "data-map-of" in attributes
            assert wrapped or attributes["id"] in labelled
        if tag == "svg":
            assert "aria-label" in attributes or attributes.get("aria-hidden") == "true"
    assert len(set(parsed.attributes("id"))) == len(parsed.attributes("id"))


def test_summary_comes_first_and_says_what_the_analysis_says(parsed, comparison):
    shown = "".join(parsed.text)
    places = [shown.index(sentence) for sentence in comparison.text["summary"]]
    assert places == sorted(places)
    assert places[-1] < shown.index("Curves shown")
    curve = next(c for c in comparison.curves if c.order == comparison.order)
    assert shown.index(phrases.share(curve.pck.at(0.05).value)) > 0


def test_groups_of_failures_at_the_threshold_of_the_analysis(comparison):
    data = chart_data.of(comparison)
    found = comparison.failures[0]
    counts = data["counts"][comparison.order][0][data["start"]]
    assert counts == [found.counts[group] for group in chart_data.GROUPS]
    assert data["thresholds"][data["start"]] == comparison.threshold


def test_what_json_cannot_hold_becomes_null():
    values = {"a": np.array([1.0, np.nan]), "b": (np.inf, 2)}
    assert chart_data.plain(values) == {"a": [1.0, None], "b": [None, 2]}


def test_overlay_lets_the_picture_show_where_a_map_is_low():
    maps = np.zeros((16, 16, 2), np.float32)
    maps[4, 4, 0], maps[12, 12, 1] = 1.0, 0.5
    together, first, second = figures.overlays(maps)
    assert together != first != second
    alpha = np.asarray(_open(first))[..., 3]
    assert alpha[4, 4] > 200
    assert alpha[12, 12] == 0
    alpha = np.asarray(_open(together))[..., 3]
    assert 0 < alpha[12, 12] < alpha[4, 4]


def _open(uri):
    assert uri.startswith("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA")


def test_large_pictures_are_embedded_smaller():
    assert max(_open(figures.embed(Image.new("RGB", (3000, 2000)))).size) == 512


def test_a_lost_prediction_has_no_mark(comparison):
    shown = reported.example(comparison, 1)
    shown.predicted[0, 0] = np.inf
    described = figures.example(comparison, shown, "x")
    assert [k for k, _, _ in described["marks"][0]["at"]] == [1, 2, 3]
    assert "inf" not in described["vectors"][0]


def test_command_trains_the_same_config_again(comparison, monkeypatch):
    """The flags that the report prints, parsed as the program parses them."""
    for method, printed in zip(
        comparison.methods, reproduction.commands(comparison)[::2], strict=False
    ):
        words = shlex.split(printed["command"])[1:]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        flags.DEFINE_string("workdir", "", "", flag_values=values)
        words[1] = f"--config={ROOT / 'configs' / 'common.py'}"
        monkeypatch.setattr(sys, "argv", words)  # where ml_collections looks for overrides
        command_line.parse(words, values)
        assert from_mapping(values.config.to_dict()) == method.config
        assert values.workdir == str(method.folder)


def test_the_command_that_made_everything_comes_first(comparison):
    made = dataclasses.replace(comparison, command="python launch/study.py --out='a b'")
    first, *others, last = reproduction.commands(made)
    assert first["command"] == made.command
    assert others == reproduction.commands(comparison)[:-1]
    assert last["title"] != reproduction.commands(comparison)[-1]["title"]


@pytest.mark.parametrize("module", ["jinja2", "plotly"])
def test_without_the_extra_one_sentence_says_how_to_get_it(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[report\]'"):
        command.main([str(tmp_path), f"--out={tmp_path / 'report.html'}"])


def test_html_is_chosen_by_its_suffix(tmp_path):
    assert command.outputs(tmp_path / "a.html") == {tmp_path / "a.html": page.write}


def test_template_is_part_of_the_package():
    """An editable install has it anyhow; a wheel only what is declared."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = declared["package-data"]["heatmap.report"]
    report = ROOT / "heatmap" / "report"
    packed = {file for pattern in patterns for file in report.glob(pattern)}
    assert packed == set((report / "template").iterdir())
