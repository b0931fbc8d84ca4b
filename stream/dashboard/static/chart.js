// The last minute as a chart, the values under the pointer, and the same values as a table.

import { $, make, setText } from "./elements.js";
import { formatPercent, formatSeconds, formatSigned, MISSING } from "./format.js";
import { CONFIDENCE, emotionsOf, EMOTIONS, gatesOf, HOLE_MS, MODALITIES, NAMES, RAW, SMOOTH, T } from "./rows.js";
import { isPaused, newest, rowAt, silentMs, state, zero } from "./state.js";
import { Timeline } from "./timeline.js";

const WINDOW_MS = 60000;
const CHART_MS = 200;
const TABLE_MS = 1000, TABLE_ROWS = 11;
const TIP_PX = 14;

let timeline = null;
let chartDrawn = 0;
let chartCost = 0;
let tableDrawn = 0;

/** Take over the page's ECharts instance; a click on it picks a time. */
export function createChart(chart, onPick) {
  timeline = new Timeline(chart, onPick, drawTip);
  const restyle = () => {
    timeline.restyle();
    drawChart(true);
  };
  new ResizeObserver(restyle).observe(chart.getDom());
  document.addEventListener("themechange", restyle);
}

/** Draw the chart, `now` or when that is due; a slow browser spends a quarter of its time on it at most. */
export function drawChart(now) {
  const begun = performance.now();
  if (!now && (!state.rows.length || begun - chartDrawn < Math.max(CHART_MS, 4 * chartCost))) return;
  const idle = state.stale ? silentMs() : 0;
  const end = newest() + (idle > HOLE_MS ? idle : 0);
  let view = { from: end - WINDOW_MS, to: end, anchor: end, cursor: null, marks: [] };
  if (isPaused()) {
    const { anchor, begin, cursor, marks } = state;
    const to = Math.min(Math.max(cursor + WINDOW_MS / 4, state.rows[0][T] + WINDOW_MS), Math.max(anchor, cursor));
    view = { from: to - WINDOW_MS, to, anchor, cursor, marks: [...marks] };
    if (begin !== null) view.marks.push({ from: begin, to: state.end ?? Math.max(begin, cursor) });
  }
  timeline.draw(state.rows, state.sounds, view);
  chartDrawn = performance.now();
  chartCost = chartDrawn - begun;
}

/** The values under the pointer. */
function drawTip(t, x) {
  const tip = $("tip");
  const row = t === null ? null : rowAt(t);
  tip.hidden = !row;
  if (!row) return;
  const lines = [
    `${formatSeconds(zero() - row[T])} s ${isPaused() ? "before the pause" : "ago"}`,
    row[SMOOTH] === null ? "no prediction" : `sentiment ${formatSigned(row[SMOOTH])} (raw ${formatSigned(row[RAW])})`,
  ];
  const emotions = emotionsOf(row);
  if (emotions) {
    const ranked = emotions.shares.map((share, i) => [share, EMOTIONS[i]]).sort((a, b) => b[0] - a[0]);
    lines.push(...ranked.slice(0, 3).map(([share, name]) => `${name} ${formatPercent(share)}`));
    lines.push(gatesOf(row).map((share, i) => `${NAMES[MODALITIES[i]]} ${formatPercent(share)}`).join(", "));
  }
  setText(tip, lines.join("\n"));
  const fits = x + TIP_PX + tip.offsetWidth <= tip.parentElement.clientWidth;
  tip.style.left = `${fits ? x + TIP_PX : Math.max(x - TIP_PX - tip.offsetWidth, 0)}px`;
}

/** Ten seconds, one line each. */
export function drawTable() {
  if (!$("details").open || performance.now() - tableDrawn < TABLE_MS) return;
  tableDrawn = performance.now();
  const line = (tag, texts, properties) => make("tr", {}, ...texts.map((text) => make(tag, { textContent: text, ...properties })));
  const heads = [isPaused() ? "seconds before the pause" : "seconds ago", "sentiment", "emotion", "sure", ...MODALITIES.map((name) => NAMES[name])];
  const rows = Array.from({ length: TABLE_ROWS }, (_, i) => rowAt((state.cursor ?? newest()) - 1000 * i)).filter(Boolean);
  $("table").replaceChildren(make("table", {}, line("th", heads, { scope: "col" }), ...rows.map((row) => {
    const emotions = emotionsOf(row);
    return line("td", [formatSeconds(zero() - row[T], isPaused() ? 1 : 0), formatSigned(row[SMOOTH]),
      emotions ? EMOTIONS[emotions.top] : MISSING, formatPercent(row[CONFIDENCE]),
      ...(gatesOf(row) ?? [null, null, null]).map(formatPercent)]);
  })));
}
