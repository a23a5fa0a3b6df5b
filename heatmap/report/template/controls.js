"use strict";

/* What the reader can change: curves, threshold, order, layers, the order of the table. */
(() => {
  const { data, chosen, draw, drawAll } = report;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const on = (selector, event, act) =>
    all(selector).forEach((element) => element.addEventListener(event, () => act(element)));
  const show = (element, visible) => element.toggleAttribute("hidden", !visible);

  /* Writes the numbers at the chosen threshold and order beside the curves. */
  function tell() {
    const now = chosen.threshold;
    const value = String(data.thresholds[now]);
    const slider = document.getElementById("threshold");
    slider.value = now;
    slider.setAttribute("aria-valuetext", `${value} of the reference length`);
    document.getElementById("threshold-now").textContent = value;
    all("[data-now]").forEach((place) => { place.textContent = value; });
    all("[data-pck]").forEach((cell) => {
      const m = cell.dataset.pck;
      const curve = m === "ceiling" ? data.ceiling : data.curves[chosen.order][Number(m)];
      cell.textContent = curve.text[now];
    });
    all("[data-ceiling]").forEach((row) => show(row, chosen.order === "ordered"));
    all("[data-pair]").forEach((body) => {
      const counts = data.counts[chosen.order][Number(body.dataset.pair)][now];
      all("[data-count]", body).forEach((cell, i) => { cell.textContent = counts[i]; });
    });
    draw("pck");
  }

  on("#threshold", "input", (slider) => { chosen.threshold = Number(slider.value); tell(); });
  on("input[name=order]", "change", (radio) => { chosen.order = radio.value; tell(); });
  on("[data-curve]", "change", (box) => {
    chosen.hidden[box.checked ? "delete" : "add"](box.dataset.curve);
    draw("pck");
  });
  on("#offset-point", "change", (select) => { chosen.point = Number(select.value); draw("offsets"); });
  on("[data-ablation]", "change", (select) => {
    const number = Number(select.dataset.ablation);
    chosen.metrics[number] = Number(select.value);
    draw(`ablation-${number}`);
  });

  /* A map is seen if its layer is on, its method is the one chosen and its keypoint as well. */
  function arrange(section) {
    const root = document.getElementById(section);
    const by = document.querySelector(`[data-map-by="${section}"]`)?.value;
    const of = document.querySelector(`[data-map-of="${section}"]`)?.value;
    const layers = new Map(
      all(`input[data-in="${section}"]`).map((box) => [box.dataset.layer, box.checked]));
    all("figure [data-layer]", root).forEach((layer) => {
      const mine = by === undefined || layer.dataset.method === undefined || layer.dataset.method === by;
      show(layer, layers.get(layer.dataset.layer) !== false && mine);
    });
    if (of !== undefined) all("image.map", root).forEach((map) => show(map, map.dataset.point === of));
  }

  on("input[data-in]", "change", (box) => arrange(box.dataset.in));
  on("[data-map-of]", "change", (select) => arrange(select.dataset.mapOf));
  on("[data-map-by]", "change", (select) => arrange(select.dataset.mapBy));

  /* Sorts by a column: numbers by value with the unknown last, names as people order them. */
  const table = document.getElementById("images-table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const names = new Intl.Collator(undefined, { numeric: true });
  const numberIn = (cell) => (cell.dataset.value === "" ? NaN : Number(cell.dataset.value));

  function compare(a, b, sign) {
    if (a.dataset.value === undefined) return sign * names.compare(a.textContent, b.textContent);
    const [x, y] = [numberIn(a), numberIn(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return x === y ? 0 : sign * (x < y ? -1 : 1);
  }

  on(".sortable button", "click", (button) => {
    const heading = button.closest("th");
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    all("th[aria-sort]", table).forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const i = heading.cellIndex;
    rows.sort((a, b) => compare(a.cells[i], b.cells[i], ascending ? 1 : -1));
    body.append(...rows);
  });

  on("#find", "input", (field) => {
    const wanted = field.value.toLowerCase();
    rows.forEach((row) => show(row, row.cells[0].textContent.toLowerCase().includes(wanted)));
    document.getElementById("found").textContent = `${rows.filter((r) => !r.hidden).length} shown`;
  });

  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", drawAll);
  function print(printing) {
    chosen.printing = printing;
    document.documentElement.classList.toggle("printing", printing);
    if (printing) all("details:not(.screen-only, [open])").forEach((d) => { d.open = true; d.dataset.closed = ""; });
    else all("details[data-closed]").forEach((d) => { d.open = false; delete d.dataset.closed; });
    drawAll();
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));

  /* A browser that opens the page again may put back what was chosen before. */
  all("input[type=checkbox], input[type=radio]").forEach((box) => { box.checked = box.defaultChecked; });
  all("select").forEach((select) => { select.selectedIndex = 0; });
  all("#threshold, #find").forEach((field) => { field.value = field.defaultValue; });
  drawAll();
})();
