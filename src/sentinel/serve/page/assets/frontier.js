// Speed against quality: the report's frontier with the dial's own point, or the points of the runs so far.
import { chartStyle } from "./chart_style.js";

const one = (id) => document.getElementById(id);
const [INK, WARM] = ["var(--muted)", "var(--masked)"];
const COLOURS = { fp32: "#3b7dd8", bf16: "#3b7dd8", fp16: "#3b7dd8", int8: "#cf7322", int4: "#2f9e6e" };
const HEIGHT = 300;
// Neither code nor styles are made from text, which the server's policy forbids.
const OPTIONS = { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };

export class Frontier {
  constructor({ name, frontier, charts }) {
    this.report = frontier;
    this.charts = charts;
    this.points = [];
    this.here = null;
    const own = "Every run adds a point: how fast, and how many of the unpruned model’s tokens it chooses too.";
    const ours = "The orange ring is the last run, the orange line its speed where the report knows no such quality.";
    const missing = "Drawing needs the extra full: pip install 'sentinel-ai[full]'.";
    const other = frontier && frontier.model !== name ? ` The report is of ${frontier.model}; this model may differ from it.` : "";
    one("frontier-said").textContent = charts ? (frontier ? `${frontier.note} ${ours}${other}` : own) : missing;
    if (frontier) this.draw();
    let width = one("frontier").clientWidth;
    new ResizeObserver(() => {
      if (one("frontier").clientWidth === width) return;
      width = one("frontier").clientWidth;
      this.draw();
    }).observe(one("frontier"));
  }

  // A run that ended: its setting, tokens/s (null where there was one token only), agreement (null: not known) and masks.
  point({ level, precision, heads, neurons }, speed, share, nMasked) {
    if (!speed) return;
    const [h, n] = [Math.round(100 * heads), Math.round(100 * neurons)];
    const known = nMasked ? null : this.increase(precision, h, n);
    const less = [h ? `${h} % of heads removed` : "", n ? `${n} % of neurons removed` : "", nMasked ? `${nMasked} heads masked` : ""];
    const name = [`level ${level} ${precision}`, ...less.filter(Boolean)].join(", ");
    this.here = { configuration: name, "tokens per second": Math.round(10 * speed) / 10, increase: known, agreement: share, precision };
    this.points = [...this.points.filter((point) => point.configuration !== name), this.here];
    this.draw();
  }

  increase(precision, heads, neurons) {
    const same = (one) => one.precision === precision && one.heads === heads && one.neurons === neurons;
    return this.report?.known.find(same)?.increase ?? null;
  }

  async draw() {
    if (!this.charts || !(this.report || this.points.some((point) => point.agreement !== null))) return;
    try {
      await import("./charts.js"); // large, and asked for once
    } catch {
      one("frontier-said").textContent = "The charts can’t be had from the server; reload the page once it answers.";
      return;
    }
    const place = one("frontier");
    const spec = this.report ? this.ofReport() : this.ofRuns();
    await window.vegaEmbed(place, { ...spec, config: chartStyle(place.clientWidth) }, OPTIONS);
    place.dataset.points = this.points.length;
  }

  ofReport() {
    const spec = structuredClone(this.report.chart);
    if (!this.here) return spec;
    const speed = this.here["tokens per second"];
    for (const { encoding } of spec.layer) {
      const { domain } = encoding.x?.scale ?? {};
      if (domain) domain[1] = Math.max(domain[1], 1.1 * speed);
    }
    const { x, y } = spec.layer[0].encoding;
    const tooltip = [{ field: "configuration" }, { field: "tokens per second" }];
    const mark = this.here.increase === null
      ? { mark: { type: "rule", stroke: WARM, strokeWidth: 2 }, encoding: { x, tooltip } }
      : { mark: { type: "point", size: 320, strokeWidth: 3, stroke: WARM, filled: false }, encoding: { x, y, tooltip } };
    spec.layer.push({ data: { values: [this.here] }, ...mark });
    return spec;
  }

  ofRuns() {
    const judged = this.points.filter((point) => point.agreement !== null);
    const room = 1.1 * Math.max(...judged.map((point) => point["tokens per second"]));
    const x = {
      field: "tokens per second", type: "quantitative", title: "tokens/s", scale: { domain: [0, room], nice: false },
    };
    const y = {
      field: "agreement", type: "quantitative", title: "agreement with the unpruned model",
      axis: { format: ".0%", values: [0, 0.25, 0.5, 0.75, 1] }, scale: { domain: [-0.05, 1.05], nice: false, zero: false },
    };
    const precisions = [...new Set(judged.map((point) => point.precision))];
    const scale = { domain: precisions, range: precisions.map((name) => COLOURS[name] ?? INK) };
    const tooltip = [{ field: "configuration" }, { field: "tokens per second" }, { field: "agreement", format: ".1%" }];
    const layer = [
      { mark: { type: "point", filled: true, size: 90 }, encoding: { color: { field: "precision", type: "nominal", scale }, tooltip } },
    ];
    if (this.here.agreement !== null) {
      const ring = { type: "point", filled: false, size: 320, strokeWidth: 3, stroke: WARM };
      layer.push({ data: { values: [this.here] }, mark: ring, encoding: { tooltip } });
    }
    return {
      $schema: "https://vega.github.io/schema/vega-lite/v6.json",
      width: "container", height: HEIGHT, autosize: { type: "fit-x", contains: "padding" }, background: "transparent",
      data: { values: judged }, encoding: { x, y }, layer,
    };
  }
}
