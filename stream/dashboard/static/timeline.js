// Sentiment, emotions, shares, presence and voice on one time axis, in one ECharts chart.

import { AGE, CONFIDENCE, EMOTION, EMOTIONS, GATE, HOLE_MS, MODALITIES, NAMES, RAW, SMOOTH, T, within } from "./rows.js";

const BAND = 1.2; // half the band's height where confidence is 0
const FRESH_MS = [500, 500, 5000];
// Tops and heights of the lanes, in pixels.
const LANES = [
  { name: "sentiment", note: "smoothed, raw, and a band that widens as confidence falls", top: 22, height: 144 },
  { name: "emotions", note: "share of each", top: 192, height: 118 },
  { name: "share in the decision", note: "face, voice, words", top: 336, height: 62 },
  { name: "present", note: "", top: 424, height: 30 },
  { name: "voice level", note: "filled where there is speech", top: 480, height: 50 },
];

/** A colour of the style sheet. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export class Timeline {
  constructor(chart, onPick, onPoint) {
    this.chart = chart;
    this.zero = "now"; // what the axis' zero is called
    chart.getZr().on("click", (event) => {
      if (this.scale) onPick(this.scale(event.offsetX));
    });
    const box = chart.getDom();
    box.addEventListener("pointermove", (event) => {
      const x = event.clientX - box.getBoundingClientRect().left;
      onPoint(this.scale ? this.scale(x) : null, x);
    });
    box.addEventListener("pointerleave", () => onPoint(null, 0));
    this.restyle();
  }

  /** Lay the lanes out anew: colours or width have changed. */
  restyle() {
    const ink = colour("ink"), soft = colour("soft"), faint = colour("faint"), line = colour("line");
    const axis = (index) => ({
      gridIndex: index, type: "value", min: -60, max: 0, axisLine: { show: false }, axisTick: { show: false },
      splitLine: { show: true, lineStyle: { color: line } }, splitNumber: 6, minInterval: 5,
      axisLabel: index === LANES.length - 1
        ? { color: faint, fontSize: 11, hideOverlap: true, formatter: (x) => (Math.abs(x) < 1e-9 ? this.zero : `${+x.toFixed(1)} s`.replace("-", "−")) }
        : { show: false },
      axisPointer: { label: { show: false } },
    });
    const left = 44, right = 18;
    this.left = left;
    this.right = right;
    const scale = (index, extra) => ({
      gridIndex: index, type: "value", axisLine: { show: false }, axisTick: { show: false },
      axisLabel: { color: faint, fontSize: 11 }, splitLine: { show: false }, ...extra,
    });
    this.hatch = hatching(faint);
    this.colours = {
      emotions: EMOTIONS.map(colour), modalities: MODALITIES.map(colour), ink, soft, faint, line,
      negative: colour("negative"), middle: colour("middle"), positive: colour("positive"), track: colour("track"),
    };
    const narrow = this.chart.getWidth() < 560;
    this.chart.setOption({
      animation: false,
      textStyle: { fontFamily: "Roboto, system-ui, sans-serif" },
      title: LANES.map((lane) => ({
        text: lane.note && !narrow ? `{a|${lane.name}}  {b|${lane.note}}` : `{a|${lane.name}}`, left: left - 5,
        top: lane.top - 21, padding: [3, 0],
        textStyle: { rich: { a: { color: soft, fontSize: 12, fontWeight: 500 }, b: { color: faint, fontSize: 11 } } },
      })),
      // Without outer bounds, or the lane with the labels would be narrower than the others.
      grid: LANES.map((lane) => ({ left, right, top: lane.top, height: lane.height, outerBoundsMode: "none" })),
      xAxis: LANES.map((_, index) => axis(index)),
      yAxis: [
        scale(0, { min: -3, max: 3, interval: 3, splitLine: { show: true, lineStyle: { color: line } },
          axisLabel: { color: faint, fontSize: 11, formatter: (y) => (y > 0 ? `+${y}` : `${y}`.replace("-", "−")) } }),
        scale(1, { min: 0, max: 1, interval: 0.5, axisLabel: { color: faint, fontSize: 11, formatter: (y) => `${y * 100} %` } }),
        scale(2, { min: 0, max: 1, interval: 1, axisLabel: { color: faint, fontSize: 11, formatter: (y) => `${y * 100} %` } }),
        scale(3, { type: "category", data: MODALITIES.map((name) => NAMES[name]), inverse: true,
          axisLabel: { color: faint, fontSize: 10, interval: 0, lineHeight: 10 } }),
        scale(4, { min: -70, max: 0, interval: 70, axisLabel: { color: faint, fontSize: 11, formatter: (y) => (y ? "−70 dB" : "0") } }),
      ],
      visualMap: { show: false, type: "continuous", dimension: 1, min: -2, max: 2, seriesIndex: 3,
        inRange: { color: [this.colours.negative, this.colours.middle, this.colours.positive] } },
      series: [],
    }, { notMerge: true });
  }

  /**
   * Draw the rows between two times.
   * @param view {from, to, anchor, cursor, marks}: ms; `anchor` is the axis' zero, `cursor` null while live.
   */
  draw(rows, sound, view) {
    this.zero = view.cursor === null ? "now" : "pause";
    const x = (t) => (t - view.anchor) / 1000;
    const shown = within(rows, view.from - 1000, view.to);
    const holes = missing(shown, view);
    const points = broken(shown);
    // ECharts leaves out a last point that stands on the axis' very end, and closes the area askew.
    if (shown.length) points.push([shown.at(-1)[T] + 50, ...shown.at(-1).slice(1)]);
    const levels = broken(within(sound, view.from - 1000, view.to));
    const c = this.colours;
    const lines = (values) => points.map((row, i) => [x(row[T]), values(row, i)]);
    const area = (index, values, fill, z) => ({
      type: "line", xAxisIndex: index, yAxisIndex: index, data: lines(values), showSymbol: false, silent: true, z,
      lineStyle: { width: 0 }, areaStyle: { color: fill, opacity: 1, origin: "start" }, animation: false, clip: true,
    });
    const cumulative = (index, first, count, fills) => {
      const series = [];
      for (let k = count; k >= 1; k--) {
        const sum = (row) => {
          if (row[first] === null) return null;
          let total = 0;
          for (let j = 0; j < k; j++) total += row[first + j];
          return Math.min(total, 1);
        };
        series.push(area(index, sum, fills[k - 1], 2 + (count - k)));
      }
      return series;
    };
    const width = this.chart.getWidth() - this.left - this.right;
    this.scale = (pixel) => view.from + ((pixel - this.left) / width) * (view.to - view.from);
    const series = [
      ...[0, 1, 2].map((index) => this.rects(index, holes.map(([a, b]) => [x(a), x(b)]), () => this.hatch)),
      { type: "line", xAxisIndex: 0, yAxisIndex: 0, data: lines((row) => row[SMOOTH]), showSymbol: false, z: 6,
        lineStyle: { width: 2.2 }, silent: true },
      { type: "line", xAxisIndex: 0, yAxisIndex: 0, data: lines((row) => row[RAW]), showSymbol: false, z: 5,
        lineStyle: { width: 1, color: c.faint, opacity: 0.8 }, silent: true },
      this.band(points.map((row) => (row[SMOOTH] === null ? null : [x(row[T]), row[SMOOTH], BAND * (1 - row[CONFIDENCE])]))),
      ...cumulative(1, EMOTION, 7, c.emotions),
      ...cumulative(2, GATE, 3, c.modalities),
      this.presence(shown, x),
      { type: "line", xAxisIndex: 4, yAxisIndex: 4, data: levels.map((row) => [x(row[T]), row[1]]), showSymbol: false, z: 4,
        lineStyle: { width: 1.2, color: c.soft }, areaStyle: { color: c.track, opacity: 1, origin: "start" }, silent: true },
      { type: "line", xAxisIndex: 4, yAxisIndex: 4, data: levels.map((row) => [x(row[T]), row[3] ? row[1] : null]), z: 5,
        showSymbol: false, lineStyle: { width: 1.4, color: c.modalities[1] },
        areaStyle: { color: c.modalities[1], opacity: 0.55, origin: "start" }, silent: true },
    ];
    // The cursor, and stretches that are marked, over all lanes; always there, so that the series keep their places.
    for (let index = 0; index < LANES.length; index++) {
      const marks = (view.marks || []).map((mark) => [x(mark.from), x(mark.to)]);
      series.push(this.rects(index, marks, () => c.ink, 0.1, 20));
      const at = view.cursor === null ? [] : [[x(view.cursor), x(view.cursor)]];
      series.push(this.rects(index, at, () => c.ink, 1, 30, 1.5));
    }
    const axes = LANES.map(() => ({ min: x(view.from), max: x(view.to) }));
    this.chart.setOption({ xAxis: axes, series }, { lazyUpdate: false, silent: true });
  }

  rects(index, spans, fill, opacity = 1, z = 1, least = 0) {
    return {
      type: "custom", xAxisIndex: index, yAxisIndex: index, data: spans, silent: true, z, clip: true, animation: false,
      renderItem: (params, api) => {
        const box = params.coordSys;
        const from = Math.max(api.coord([api.value(0), 0])[0], box.x);
        const to = Math.min(api.coord([api.value(1), 0])[0], box.x + box.width);
        if (to + least < from || from > box.x + box.width) return null;
        return { type: "rect", shape: { x: from, y: box.y, width: Math.max(to - from, least), height: box.height },
          style: { fill: fill(), opacity } };
      },
    };
  }

  /** One polygon for each stretch without a gap. */
  band(points) {
    const pieces = [];
    let piece = [];
    for (const point of [...points, null]) {
      if (point) piece.push(point);
      else if (piece.length) {
        pieces.push(piece);
        piece = [];
      }
    }
    return {
      type: "custom", xAxisIndex: 0, yAxisIndex: 0, data: pieces.map((each) => [each[0][0], 0]), silent: true, z: 3,
      clip: true, animation: false,
      renderItem: (params, api) => {
        const each = pieces[params.dataIndex] || [];
        const edge = (sign) => each.map(([px, y, half]) => api.coord([px, Math.max(-3, Math.min(3, y + sign * half))]));
        return { type: "polygon", shape: { points: [...edge(1), ...edge(-1).reverse()] },
          style: { fill: this.colours.middle, opacity: 0.17 } };
      },
    };
  }

  /** A bar for each modality while there is evidence of it; pale while the newest is old. */
  presence(rows, x) {
    const spans = [];
    MODALITIES.forEach((_, m) => {
      let open = null;
      rows.forEach((row, i) => {
        const age = row[AGE + m];
        const level = age === null ? 0 : age <= FRESH_MS[m] ? 2 : 1;
        const next = rows[i + 1];
        const end = next && next[T] - row[T] <= HOLE_MS ? next[T] : row[T] + 100;
        if (open && (open[3] !== level || row[T] - open[1] > HOLE_MS)) {
          spans.push(open);
          open = null;
        }
        if (level && !open) open = [row[T], end, m, level];
        else if (open) open[1] = end;
      });
      if (open) spans.push(open);
    });
    return {
      type: "custom", xAxisIndex: 3, yAxisIndex: 3, silent: true, z: 3, clip: true, animation: false,
      data: spans.map(([a, b, m, level]) => [x(a), x(b), m, level]),
      renderItem: (params, api) => {
        const box = params.coordSys;
        const height = box.height / 3;
        const from = Math.max(api.coord([api.value(0), 0])[0], box.x);
        const to = Math.min(api.coord([api.value(1), 0])[0], box.x + box.width);
        if (to <= from) return null;
        return { type: "rect", shape: { x: from, y: box.y + height * api.value(2) + 2, width: to - from, height: height - 4 },
          style: { fill: this.colours.modalities[api.value(2)], opacity: api.value(3) === 2 ? 1 : 0.4 } };
      },
    };
  }
}

/** Rows with an empty one wherever some are missing, so that no line bridges a hole. */
function broken(rows) {
  const out = [];
  rows.forEach((row, i) => {
    if (i && row[T] - rows[i - 1][T] > HOLE_MS) out.push([rows[i - 1][T] + 1, ...Array(row.length - 1).fill(null)]);
    out.push(row);
  });
  return out;
}

/** Spans without a prediction between the first row there is and the end of the view. */
function missing(rows, view) {
  const spans = [];
  let last = null;
  for (const row of rows) {
    if (last !== null && row[T] - last > HOLE_MS) spans.push([last, row[T]]);
    if (row[SMOOTH] !== null) last = row[T];
  }
  if (last !== null && view.to - last > HOLE_MS) spans.push([last, view.to]);
  return spans;
}

/** Thin diagonals, the pattern of what is missing. */
function hatching(stroke) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const pen = tile.getContext("2d");
  pen.strokeStyle = stroke;
  pen.globalAlpha = 0.45;
  pen.lineWidth = 1;
  pen.beginPath();
  for (const shift of [-8, 0, 8]) {
    pen.moveTo(shift, 8);
    pen.lineTo(shift + 8, 0);
  }
  pen.stroke();
  return { image: tile, repeat: "repeat" };
}
