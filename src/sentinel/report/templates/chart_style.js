// How charts look (Vega-Lite's config) in a place of that width. Colours are the page's own, so that they follow it to dark
// and to paper.
export function chartStyle(width) {
  const [fg, muted, line] = ["var(--fg)", "var(--muted)", "var(--line)"];
  const columns = Math.max(1, Math.floor(width / 200));
  const layout = { direction: width < 600 ? "vertical" : "horizontal", anchor: "start", margin: 8 };
  return {
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: 600, labelColor: fg, titleColor: fg,
      gridColor: line, domainColor: muted, tickColor: muted,
    },
    axisX: { tickCount: Math.max(3, Math.round(width / 120)) },
    legend: {
      orient: "top", labelFontSize: 12, labelLimit: 0, labelColor: fg, titleColor: fg,
      symbolBaseFillColor: muted, symbolBaseStrokeColor: muted, columns, layout: { top: layout },
    },
    point: { opacity: 1 },
    title: { color: fg },
    text: { color: fg },
  };
}
