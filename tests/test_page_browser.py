"""The HTML report in a real browser, which has to be there: see tests/browser.py."""

import dataclasses
import math

import numpy as np
import pytest

from heatmap.report import page, phrases
from heatmap.report.findings import Gallery
from tests import browser, reported

WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium():
    with browser.launched() as launched:
        yield launched


@pytest.fixture(scope="module")
def comparison():
    return reported.comparison()


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    page.write(path, comparison, reported.gallery(comparison))
    return path


class Opened:
    """A page, all that it said and all that it asked for."""

    def __init__(self, chromium, path, **options):
        self.context = chromium.new_context(**{"viewport": WIDE, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(browser.PATIENCE)
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.querySelectorAll('.chart .main-svg').length > 5")

    def drawn(self, chart, expression):
        """Evaluates an expression of what a chart has drawn, `plot`."""
        script = f"(() => {{ const plot = document.getElementById('chart-{chart}');"
        return self.page.evaluate(f"{script} return {expression}; }})()")


@pytest.fixture(scope="module")
def opened(chromium, report):
    """One page for tests that put back what they change."""
    opened = Opened(chromium, report)
    yield opened
    opened.context.close()


def test_says_nothing_and_asks_for_nothing(chromium, report):
    opened = Opened(chromium, report)
    for control in opened.page.locator("main :is(summary, .sortable button)").all():
        control.click()
    for box in opened.page.locator("main input[type=checkbox]").all():
        box.click()
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [report.as_uri()]
    opened.context.close()


def test_names_stay_text(opened):
    assert opened.page.title() == f"{' and '.join(reported.NAMES)}: a comparison"
    assert opened.page.locator("img").count() == 0  # pictures are drawn in SVG
    assert opened.page.locator("tbody th b, h1 b").count() == 0
    table = opened.page.locator("#images-table")
    assert table.get_by_role("rowheader", name=reported.SCRIPT, exact=True).count() == 1
    heading = opened.page.locator("h1").inner_text()
    assert heading == " and ".join(reported.NAMES)
    assert reported.CLOSING in opened.page.locator("#offset-point").inner_text()
    # In charts too, where the library would read tags.
    ticks = opened.page.locator("#chart-errors .ytick").all_text_contents()
    assert reported.CLOSING in ticks


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.125, 0.3])
@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_slider_shows_the_numbers_of_the_analysis(opened, comparison, threshold, order):
    opened.page.locator(f"input[name=order][value={order}]").check()
    thresholds = comparison.curves[0].pck.thresholds
    place = int(np.argmin(abs(thresholds - threshold)))
    slider = opened.page.get_by_label("Threshold", exact=True)
    slider.fill(str(place))
    assert slider.get_attribute("aria-valuetext") == f"{threshold:g} of the reference length"
    for m, method in enumerate(comparison.methods):
        errors = method.errors_in(order)
        right = errors <= threshold * method.reference[:, None]
        expected = f"{right.sum() / (~np.isnan(errors)).sum():.3f}"
        assert opened.page.locator(f"[data-pck='{m}']").inner_text().startswith(expected)
    curve = next(c for c in comparison.curves if c.order == order)
    text = phrases.interval(curve.pck.at(threshold), phrases.share)
    assert opened.page.locator("[data-pck='0']").inner_text() == text
    shown = opened.page.locator("[data-pair='0'] [data-count]").all_inner_texts()
    assert shown == [str(n) for n in _groups(comparison, order, threshold)]
    assert opened.page.locator("[data-ceiling]").is_visible() == (order == "ordered")
    assert opened.drawn("pck", "plot.layout.shapes[0].x0") == pytest.approx(threshold)


def _groups(comparison, order, threshold):
    """Counts failures point by point, as the words of the report define them."""
    counts = [0, 0, 0, 0]
    first, second = comparison.methods
    for a, b, reference in zip(
        first.errors_in(order), second.errors_in(order), first.reference, strict=True
    ):
        for x, y in zip(a, b, strict=True):
            if math.isnan(x):
                continue
            hits = (x <= threshold * reference, y <= threshold * reference)
            counts[[(True, False), (False, True), (False, False), (True, True)].index(hits)] += 1
    return counts


def test_slider_moves_by_keys(opened):
    slider = opened.page.get_by_label("Threshold", exact=True)
    slider.fill("20")
    slider.press("ArrowRight")
    assert opened.page.locator("#threshold-now").inner_text() == "0.105"


def test_curves_can_be_hidden(opened):
    opened.page.locator("input[name=order][value=ordered]").check()
    lines = "plot.data.filter((trace) => trace.name).length"
    assert opened.drawn("pck", lines) == 3  # two methods and the ceiling
    for box in opened.page.locator("[data-curve]").all():
        box.uncheck()
    assert opened.drawn("pck", lines) == 0
    opened.page.locator("[data-curve='1']").check()
    assert opened.drawn("pck", "plot.data.at(-1).line.dash") == "dash"
    for box in opened.page.locator("[data-curve]").all():
        box.check()
    opened.page.locator("input[name=order][value=unordered]").check()
    assert opened.drawn("pck", lines) == 2


def test_curves_answer_the_pointer(opened):
    chart = opened.page.locator("#chart-pck")
    chart.scroll_into_view_if_needed()
    chart.hover()
    opened.page.wait_for_selector("#chart-pck .hoverlayer text", state="attached")
    shown = opened.page.locator("#chart-pck .hoverlayer").text_content()
    assert reported.NAMES[0] in shown  # tags and all: the library would make the letter bold
    assert reported.IMAGE[:27] in shown


def test_table_sorts_both_ways(opened, comparison):
    heading = opened.page.locator("#images-table thead th").nth(2)
    rows = "[...document.querySelectorAll('#images-table tbody tr')]"
    numbers = f"{rows}.map((row) => row.cells[2].dataset.value)"
    expected = sorted(image.worst[0] for image in comparison.images)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in opened.page.evaluate(numbers)] == expected
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert [float(v) for v in opened.page.evaluate(numbers)] == expected[::-1]
    names = opened.page.locator("#images-table thead th").first
    names.locator("button").click()
    assert heading.get_attribute("aria-sort") == "none"
    assert opened.page.locator("#images-table tbody th").nth(3).inner_text() == "picture 3.png"


def test_unknown_numbers_sort_last(opened):
    """The second method has no scores, so that its column keeps the order it had."""
    rows = opened.page.locator("#images-table tbody th")
    before = rows.all_inner_texts()
    opened.page.locator("#images-table thead button").last.click()
    assert rows.all_inner_texts() == before


def test_table_can_be_searched(opened):
    opened.page.get_by_label("Only names with").fill("PICTURE 2")
    assert opened.page.locator("#images-table tbody tr:visible").count() == 5  # 2, 20 to 23
    assert opened.page.locator("#found").inner_text() == "5 shown"
    opened.page.get_by_label("Only names with").fill("")
    assert opened.page.locator("#images-table tbody tr:visible").count() == 24


@pytest.mark.parametrize("layer", ["map", "truth", "method-0", "method-1", "vectors"])
def test_layers_switch(opened, layer):
    section = opened.page.locator("#samples")
    drawn = section.locator(f"figure > svg > [data-layer='{layer}']").first
    other = opened.page.locator(f"#failures figure > svg > [data-layer='{layer}']").first
    assert drawn.is_visible()
    section.locator(f"input[data-layer='{layer}']").uncheck()
    assert drawn.is_hidden()
    assert other.is_visible()  # each section has switches of its own
    section.locator(f"input[data-layer='{layer}']").check()
    assert drawn.is_visible()


def test_map_of_a_single_keypoint(opened):
    maps = opened.page.locator("#samples figure").first.locator("image.map")
    assert [maps.nth(i).is_visible() for i in range(5)] == [True, False, False, False, False]
    opened.page.locator("[data-map-of=samples]").select_option("2")
    assert [maps.nth(i).is_visible() for i in range(5)] == [False, False, True, False, False]
    opened.page.locator("[data-map-of=samples]").select_option("0")


def test_choices_of_charts(opened, comparison):
    opened.page.locator("#offset-point").select_option(label="left hand")
    bias = comparison.keypoints[1].bias_x.value
    assert opened.drawn("offsets", "plot.data[1].x[0]") == pytest.approx(bias, abs=1e-5)
    opened.page.locator("[data-ablation='0']").select_option("1")
    expected = [row.means[1] for row in comparison.ablations[0].rows]
    assert opened.drawn("ablation-0", "plot.data[0].x") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("viewport", [PHONE, WIDE], ids=["phone", "wide"])
def test_page_does_not_scroll_sideways(chromium, report, viewport):
    opened = Opened(chromium, report, viewport=viewport)
    opened.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    width = opened.page.evaluate("document.documentElement.scrollWidth")
    assert width <= viewport["width"]
    for chart in opened.page.locator(".chart .main-svg").all():
        assert chart.bounding_box()["width"] <= viewport["width"]
    opened.context.close()


def test_keyboard_reaches_every_control(chromium, report):
    opened = Opened(chromium, report)
    script = """(() => {
      const controls = 'a[href], input, select, button, summary, [tabindex="0"]';
      window.waiting = new Set([...document.querySelectorAll(controls)].filter((c) =>
        c.checkVisibility() && !(c.type === 'radio' && !c.checked)));
      return window.waiting.size;
    })()"""
    count = opened.page.evaluate(script)
    assert count > 40
    for _ in range(count + 5):
        opened.page.keyboard.press("Tab")
        opened.page.evaluate("window.waiting.delete(document.activeElement)")
    missed = "[...window.waiting].map((c) => c.outerHTML.slice(0, 120))"
    assert opened.page.evaluate(missed) == []
    opened.context.close()


def test_focus_can_be_seen(opened):
    slider = opened.page.get_by_label("Threshold", exact=True)
    slider.press("ArrowLeft")
    assert slider.evaluate("(s) => parseFloat(getComputedStyle(s).outlineWidth)") >= 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_by_the_rules_of_axe(chromium, report, scheme):
    """WCAG 2 A and AA: names of controls, order of headings, landmarks, contrast."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # The page's policy lets no foreign script in: axe comes as the test's own.
    opened = Opened(chromium, report, color_scheme=scheme, bypass_csp=True)
    found = axe.run(opened.page).response["violations"]
    assert [(v["id"], [n["html"][:150] for n in v["nodes"][:4]]) for v in found] == []
    opened.context.close()


def test_prints_in_light_colours_with_everything_open(chromium, report):
    opened = Opened(chromium, report, color_scheme="dark")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details:not([open]):not(.screen-only)").count() == 0
    assert opened.drawn("pck", "plot.layout.paper_bgcolor") == "#ffffff"
    assert opened.page.pdf(format="A4")[:4] == b"%PDF"
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details[open]").count() == 0
    assert opened.drawn("pck", "plot.layout.paper_bgcolor") != "#ffffff"
    assert opened.said == []
    opened.context.close()


def test_one_method_without_pictures(chromium, tmp_path):
    """A page of a single run from saved files alone has no empty parts."""
    alone = reported.comparison(names=("unet",))
    alone = dataclasses.replace(alone, budgets=(), ablations=())
    path = tmp_path / "alone.html"
    page.write(path, alone, Gallery((), {}, ()))
    opened = Opened(chromium, path)
    assert opened.said == []
    assert opened.page.locator("#failures, #samples, #budget, #ablations").count() == 0
    opened.page.get_by_label("Threshold", exact=True).fill("3")
    assert opened.page.locator("#threshold-now").inner_text() == "0.015"
    opened.context.close()
