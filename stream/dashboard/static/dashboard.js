// The page: asks for what is new when it has drawn the last, so a slow browser gets less, never a backlog.

import { drawCalibrating, wireCalibrating } from "./calibrating.js";
import { drawChoosing, drawFaces, follow, placeOf, wireChoosing } from "./choosing.js";
import { clearFrame, drawFrame, setEdges } from "./picture.js";
import { send } from "./server.js";
import { AGE, CONFIDENCE, EMOTION, EMOTIONS, GATE, MODALITIES, RAW, SMOOTH, T, Timeline, colour } from "./timeline.js";
import { fillScale, sentimentColour, set, showBadges, signed } from "./words.js";

const WINDOW_MS = 60000;
const STALE_MS = 2000;
const EMPTY_MS = 5000; // without a prediction: then it is said what to start
const CHART_MS = 200;
const NAMES = { vision: "face", audio: "voice", text: "words" };
const SESSION = new URLSearchParams(location.search).get("session"); // null: whichever is there
const $ = (name) => document.querySelector(`.js-${name}`);
const $$ = (name) => document.querySelectorAll(`.js-${name}`);

const state = {
  era: -1, row: 0, sound: 0, words: -1, edges: 0, rows: [], sounds: [], said: [], tentative: [], now: null, facts: null,
  heard: 0, silent: null, stale: true, connected: false, cursor: null, anchor: 0, picture: true, drawn: 0, frame: null,
  begin: null, end: null, marks: [], labels: null, record: null, origin: "", endpoint: "", choosers: [],
  mirrored: localStorage.getItem("mien-mirrored"),
};
// What tests and curious people may look at: what has been drawn last.
window.mien = { state, drawn: null };

let timeline = null;
let socket = null;
let chartDrawn = 0;
let chartCost = 0;
let wasRecording = false;

function start() {
  const element = document.querySelector(".m-chart");
  const chart = element && window.getElement?.(element.id.slice(1))?.chart;
  if (!chart) {
    setTimeout(start, 30);
    return;
  }
  document.querySelectorAll("template").forEach(repeat);
  timeline = new Timeline(chart, (t) => seek(t), point);
  new ResizeObserver(() => { timeline.restyle(); drawChart(true); }).observe(element);
  new ResizeObserver(() => redrawFrame()).observe($("canvas"));
  theme(localStorage.getItem("mien-theme"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(localStorage.getItem("mien-theme")));
  wire();
  hint();
  connect();
  setInterval(tick, 250);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
}

// What the page has once for each emotion or modality.
function repeat(template) {
  const names = template.dataset.each === "emotions" ? EMOTIONS : MODALITIES;
  template.outerHTML = names.map((key) => {
    const name = NAMES[key] ?? key;
    const title = name[0].toUpperCase() + name.slice(1);
    return template.innerHTML.replaceAll("{key}", key).replaceAll("{name}", name).replaceAll("{Name}", title);
  }).join("");
}

function theme(wanted) {
  const dark = wanted ? wanted === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  if (timeline) {
    timeline.restyle();
    drawChart(true);
    drawRow();
    drawWords();
  }
}

// ---- the feed

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/feed${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { state.connected = true; state.edges = 0; ask(); };
  socket.onmessage = async (event) => {
    await take(event.data);
    // One picture of the screen between two questions: what nobody can see is not asked for.
    requestAnimationFrame(() => ask());
  };
  socket.onclose = () => {
    state.connected = false;
    setTimeout(connect, 500);
  };
}

function ask() {
  if (document.hidden || socket.readyState !== WebSocket.OPEN) return;
  socket.send(JSON.stringify({
    era: state.era, row: state.row, sound: state.sound, words: state.words, edges: state.edges, picture: state.picture,
    drawn: state.drawn, at: state.cursor,
  }));
}

async function take(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const news = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (news.era !== state.era) Object.assign(state, { rows: [], sounds: [], drawn: 0, cursor: null });
  // Where there are many, this page is for one of them.
  if (news.sessions > 1 && SESSION === null) location.replace("/sessions");
  $("sessions").hidden = news.sessions < 2;
  Object.assign(state, { era: news.era, row: news.row, sound: news.sound, words: news.words });
  state.rows.push(...news.rows);
  state.sounds.push(...news.sounds);
  const oldest = (state.rows.at(-1)?.[T] ?? 0) - news.span_ms;
  for (const list of [state.rows, state.sounds]) {
    const keep = list.findIndex((row) => row[T] >= oldest);
    if (keep > 50) list.splice(0, keep);
  }
  Object.assign(state, { now: news.now, facts: news.facts, silent: news.silent_ms, stale: news.stale, heard: performance.now(),
    badges: news.badges, source: news.source, origin: news.origin, endpoint: news.endpoint, choosers: news.choosers, record: news.record, labels: news.labels, note: news.note,
    marks: news.marks.map(([from, to]) => ({ from, to })) });
  if (news.edges) {
    setEdges(news.edges);
    state.edges = 1;
  }
  if (news.transcript) {
    state.said = news.transcript.said;
    state.tentative = news.transcript.tentative;
    drawWords();
  }
  if (news.picture) {
    const begin = 4 + length;
    const middle = begin + 8 * news.picture.points;
    const points = new Float32Array(buffer.slice(begin, middle));
    state.frame = { ...news.picture, points, jpeg: new Uint8Array(buffer, middle) };
    state.drawn = news.picture.t_us;
    await redrawFrame();
  } else if (news.blank && state.frame) {
    state.frame = null;
    state.drawn = 0;
    window.mien.drawn = null;
    clearFrame($("canvas"));
  }
  draw();
}

function isLost() {
  return !state.connected || performance.now() - state.heard > STALE_MS;
}

// Between two answers, and when there are none, time still passes.
function tick() {
  if (isLost()) draw();
}

// ---- drawing

async function redrawFrame() {
  const canvas = $("canvas");
  if (!state.frame) {
    clearFrame(canvas);
    return;
  }
  const frame = state.frame;
  const place = await drawFrame(canvas, frame);
  window.mien.drawn = { t_us: frame.t_us, seq: frame.seq, points: frame.points, bytes: frame.jpeg.length, place };
}

function draw() {
  drawBadges();
  drawRow();
  drawSound();
  drawMirror();
  drawFaces(state, isMirrored());
  drawChoosing(state);
  drawCalibrating(state);
  drawEmpty();
  drawTable();
  drawFacts();
  drawRecord();
  offerLabels();
  $("note").textContent = state.note || "";
  if (performance.now() - chartDrawn >= Math.max(CHART_MS, 4 * chartCost)) drawChart(false);
}

function drawBadges() {
  set($("source"), [SESSION, state.source, state.endpoint && `listening on ${state.endpoint}`].filter(Boolean).join(" · "));
  let badges = state.badges || [];
  if (isLost()) {
    const seconds = state.heard ? Math.round((performance.now() - state.heard) / 1000) : 0;
    badges = [["STALE", state.connected ? `STALE ${seconds} s` : "STALE · the dashboard has stopped"]];
  } else if (state.cursor !== null) {
    const ago = ((zero() - state.cursor) / 1000).toFixed(1);
    // The past is shown: only what is still active stays visible.
    badges = [["PAUSED", `PAUSED −${ago} s`], ...badges.filter(([kind]) => kind === "REC")];
    if (rowAt(state.cursor)?.[SMOOTH] === null) badges.push(["ABSTAINS", "ABSTAINED"]);
  }
  showBadges($("badges"), badges);
}

function newest() {
  return state.rows.at(-1)?.[T] ?? 0;
}

/** What all times on the page count from: now, or while paused the moment of the pause. */
function zero() {
  return state.cursor === null ? newest() : state.anchor;
}

function rowAt(t) {
  let best = null;
  for (let i = state.rows.length - 1; i >= 0; i--) {
    const row = state.rows[i];
    if (!best || Math.abs(row[T] - t) < Math.abs(best[T] - t)) best = row;
    else break;
  }
  return best && Math.abs(best[T] - t) <= 600 ? best : null;
}

/** The numbers of one moment: the current one, or the one on show. */
function drawRow() {
  const row = state.cursor !== null ? rowAt(state.cursor) : state.stale || isLost() ? null : state.now;
  const smooth = row ? row[SMOOTH] : null;
  set($("number"), smooth === null ? "–" : signed(smooth));
  $("number").style.color = smooth === null ? "" : sentimentColour(smooth);
  set($("word"), smooth === null ? "no prediction" : describe(smooth));
  fillScale($("fill").style, smooth);
  const shares = row && row[EMOTION] !== null ? row.slice(EMOTION, EMOTION + 7) : null;
  const top = shares ? shares.indexOf(Math.max(...shares)) : -1;
  set($("top"), shares ? EMOTIONS[top] : "–");
  set($("confidence"), shares ? `${Math.round(100 * row[CONFIDENCE])} % sure` : "");
  bars($$("emotion"), shares, top);
  bars($$("gate"), row && row[GATE] !== null ? row.slice(GATE, GATE + 3) : null, -1);
}

function bars(elements, shares, top) {
  elements.forEach((bar, i) => {
    const share = shares ? shares[i] : null;
    bar.classList.toggle("is-top", i === top);
    bar.children[1].firstElementChild.style.transform = `scaleX(${share ?? 0})`;
    set(bar.children[2], share === null ? "–" : `${Math.round(100 * share)} %`);
  });
}

// The microphone of the last seconds. Columns of a row of sound: time in ms, level in dB, ..., whether it is speech.
const QUIET_DB = -50, LOUD_DB = -6, SPEECH_MS = 10000, LEVEL_MS = 3000;

function drawSound() {
  const rows = state.cursor === null && !isLost() && !state.stale ? state.sounds : [];
  const last = rows.at(-1)?.[T] ?? 0;
  const recent = rows.filter((row) => row[T] > last - LEVEL_MS).map((row) => row[1]);
  const loudest = recent.length ? Math.max(...recent) : null;
  const speaks = rows.some((row) => row[3] && row[T] > last - SPEECH_MS);
  const heardFor = rows.length ? last - rows[0][T] : 0;
  let said = "";
  if (loudest === null) said = state.cursor !== null ? "paused" : "no sound";
  else if (loudest > LOUD_DB) said = "clipping: move away or lower the gain";
  else if (speaks) said = loudest < QUIET_DB ? "too quiet" : "speech";
  else if (heardFor > SPEECH_MS) said = loudest < QUIET_DB ? "too quiet" : "no speech heard";
  set($("heard"), said);
  $("heard").parentElement.classList.toggle("is-bad", /clipping|quiet|no s/.test(said));
  const now = recent.at(-1) ?? -70;
  $("level").style.transform = `scaleX(${Math.min(Math.max((now + 70) / 70, 0), 1)})`;
}

/** People expect to see themselves as in a mirror; a clip is shown as it is. */
function isMirrored() {
  return (state.mirrored ?? (state.origin === "LIVE" ? "1" : "0")) === "1";
}

function drawMirror() {
  const on = isMirrored();
  $("canvas").classList.toggle("is-mirrored", on);
  $("mirror").setAttribute("aria-pressed", `${on}`);
}

function drawEmpty() {
  const empty = $("empty");
  const silent = (state.silent ?? 0) + (performance.now() - state.heard);
  const nothing = !state.rows.length || (state.stale && state.cursor === null && silent > EMPTY_MS);
  empty.hidden = !state.endpoint || isLost() || !nothing;
  if (!empty.hidden) set(empty, `Listening on ${state.endpoint}. No predictions${state.rows.length ? " any more" : " yet"}: start \`mien run\` or \`mien demo\` on this port.`);
  set($("endpoint"), state.endpoint);
}

let tableDrawn = 0;

function drawTable() {
  if (!$("details").open || performance.now() - tableDrawn < 1000) return;
  tableDrawn = performance.now();
  const end = state.cursor ?? newest();
  const cells = (kind, texts) => {
    const line = document.createElement("tr");
    line.append(...texts.map((text) => Object.assign(document.createElement(kind), { textContent: text })));
    return line;
  };
  const table = document.createElement("table");
  table.append(cells("th", [state.cursor === null ? "seconds ago" : "seconds before the pause", "sentiment", "emotion", "sure", "face", "voice", "words"]));
  for (let ago = 0; ago <= 10; ago++) {
    const row = rowAt(end - 1000 * ago);
    const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
    if (!row) continue;
    const shares = row[EMOTION] === null ? null : row.slice(EMOTION, EMOTION + 7);
    table.append(cells("td", [((zero() - row[T]) / 1000).toFixed(state.cursor === null ? 0 : 1), row[SMOOTH] === null ? "–" : signed(row[SMOOTH]),
      shares ? EMOTIONS[shares.indexOf(Math.max(...shares))] : "–", percent(row[CONFIDENCE]),
      ...[0, 1, 2].map((m) => percent(row[GATE + m]))]));
  }
  $("table").replaceChildren(table);
}

/** The values under the pointer. */
function point(t, x) {
  const tip = $("tip");
  const row = t === null ? null : rowAt(t);
  tip.hidden = !row;
  if (!row) return;
  const shares = row[EMOTION] === null ? null : row.slice(EMOTION, EMOTION + 7).map((share, i) => [share, EMOTIONS[i]]);
  const lines = [`${((zero() - row[T]) / 1000).toFixed(1)} s ${state.cursor === null ? "ago" : "before the pause"}`];
  lines.push(row[SMOOTH] === null ? "no prediction" : `sentiment ${signed(row[SMOOTH])} (raw ${signed(row[RAW])})`);
  if (shares) {
    for (const [share, name] of shares.sort((a, b) => b[0] - a[0]).slice(0, 3)) lines.push(`${name} ${Math.round(100 * share)} %`);
    lines.push(["face", "voice", "words"].map((name, m) => `${name} ${Math.round(100 * row[GATE + m])} %`).join(", "));
  }
  set(tip, lines.join("\n"));
  const room = tip.parentElement.clientWidth;
  tip.style.left = `${x + 14 + tip.offsetWidth > room ? Math.max(x - 14 - tip.offsetWidth, 0) : x + 14}px`;
  tip.style.top = "44px";
}

function describe(value) {
  const size = Math.abs(value);
  if (size < 0.25) return "neutral";
  return `${size < 1 ? "slightly " : size > 2 ? "very " : ""}${value > 0 ? "positive" : "negative"}`;
}

function drawWords() {
  const until = state.cursor ?? Infinity;
  const said = state.said.filter((word) => word[1] <= until).slice(-60);
  const tentative = state.cursor === null ? state.tentative : [];
  const spans = [...said, ...tentative].map(([text, , , committed, sentiment, uncertain]) => {
    const span = document.createElement("span");
    span.textContent = uncertain ? `${text}?` : text;
    if (uncertain) {
      span.className = "is-uncertain";
      span.title = "uncertain: it does not count in predictions";
    } else if (!committed) span.className = "is-tentative";
    else if (sentiment !== null) {
      span.style.borderBottomColor = sentimentColour(sentiment);
      span.style.color = `color-mix(in oklab, ${sentimentColour(sentiment)} 55%, var(--ink))`;
      span.title = `sentiment ${signed(sentiment)} of this phrase`;
    }
    return span;
  });
  if (!spans.length) {
    const none = document.createElement("span");
    none.className = "is-none";
    none.textContent = "Nothing has been said yet.";
    spans.push(none);
  }
  $("said").replaceChildren(...spans.flatMap((span) => [span, " "]));
}

function drawFacts() {
  const facts = state.facts;
  if (!facts) return;
  for (const name of MODALITIES) {
    const fact = facts[name];
    const box = document.querySelector(`[data-fact="${name}"]`);
    const slot = (key) => box.querySelector(`[data-slot="${key}"]`);
    set(slot("state"), isLost() ? "unknown" : fact.state);
    slot("state").classList.toggle("is-bad", fact.bad);
    set(slot("age"), fact.age_ms === null || state.stale ? "–" : fact.age_ms < 1000 ? `${fact.age_ms} ms` : `${(fact.age_ms / 1000).toFixed(1)} s`);
    set(slot("fps"), fact.fps === null ? "–" : `${fact.fps.toFixed(fact.fps < 10 ? 1 : 0)}/s`);
    set(slot("drops"), fact.drops === null ? "–" : `${fact.drops}`);
    slot("drops").title = fact.causes;
    set(slot("note"), fact.note);
    slot("note").title = fact.note;
  }
  const model = facts.model;
  const pair = (values) => (values ? `${format(values[0])} / ${format(values[1])} ms` : "–");
  for (const [key, text] of Object.entries({
    rate: `${model.per_second.toFixed(1)}/s`, end: pair(model.end_to_end), software: pair(model.software),
    drops: `${model.drops}`, engine: model.engine || "–", model: model.checkpoint || "–", note: model.note,
  })) {
    set(document.querySelector(`[data-model="${key}"]`), text);
  }
  const status = document.querySelector('[data-model="state"]');
  set(status, isLost() ? "unknown" : model.state);
  status.classList.toggle("is-bad", model.bad);
  status.parentElement.parentElement.title = model.causes;
}

function format(ms) {
  return ms < 10 ? ms.toFixed(1) : `${Math.round(ms)}`;
}

function drawChart(now) {
  if (!timeline || (!state.rows.length && !now)) return;
  const begun = performance.now();
  const idle = state.stale ? (state.silent ?? 0) + (begun - state.heard) : 0;
  const end = newest() + (idle > 600 ? idle : 0);
  let view = { from: end - WINDOW_MS, to: end, anchor: end, cursor: null, marks: [] };
  if (state.cursor !== null) {
    const to = Math.min(Math.max(state.cursor + WINDOW_MS / 4, state.rows[0][T] + WINDOW_MS), Math.max(state.anchor, state.cursor));
    view = { from: to - WINDOW_MS, to, anchor: state.anchor, cursor: state.cursor, marks: [...state.marks] };
    if (state.begin !== null) view.marks.push({ from: state.begin, to: state.end ?? Math.max(state.begin, state.cursor) });
  }
  timeline.draw(state.rows, state.sounds, view);
  chartDrawn = performance.now();
  chartCost = chartDrawn - begun;
}

function drawRecord() {
  const button = $("record");
  const on = Boolean(state.record?.path);
  // The end of a recording is told once: where it is, or why it ended by itself.
  if (wasRecording && !on && state.record) hint(state.record.error || `The recording is in ${state.record.last}.`);
  wasRecording = on;
  button.hidden = !state.record;
  set(button, on ? "Stop recording" : "Record");
  button.setAttribute("aria-pressed", `${on}`);
  button.title = on ? `writing ${state.record.path}` : "";
}

// ---- looking back

function seek(t) {
  if (!state.rows.length) return;
  if (state.cursor === null) {
    state.anchor = newest();
    $("scrub").hidden = false;
    $("pause").setAttribute("aria-pressed", "true");
    set($("pause"), "Back to now");
  }
  state.cursor = Math.round(Math.min(Math.max(t, state.rows[0][T]), state.anchor));
  const slider = $("slider");
  slider.min = state.rows[0][T] - state.anchor;
  slider.max = 0;
  slider.value = state.cursor - state.anchor;
  set($("ago"), `−${((state.anchor - state.cursor) / 1000).toFixed(1)} s`);
  draw();
  drawWords();
  drawChart(true);
  hint();
}

function goLive() {
  Object.assign(state, { cursor: null, begin: null, end: null, drawn: 0 });
  $("scrub").hidden = true;
  hint();
  $("pause").setAttribute("aria-pressed", "false");
  set($("pause"), "Pause");
  draw();
  drawWords();
  drawChart(true);
}

/** The labelling keys as buttons, for people without a keyboard. */
function offerLabels() {
  const box = $("labels");
  const shown = state.labels && state.cursor !== null;
  box.hidden = !shown;
  if (!shown) return;
  const choices = state.begin === null ? [["Begin here", "b"], ...(state.marks.length ? [["Undo last label", "z"]] : [])]
    : state.end === null ? [["End here", "e"], ["Cancel", "Escape"]]
      : [...[-3, -2, -1, 0, 1, 2, 3].map((value) => [`${value}`.replace("-", "−"), `${value + 4}`]),
        ...Object.entries(LETTERS).map(([key, name]) => [name, key]), ["Cancel", "Escape"]];
  const text = JSON.stringify(choices);
  if (box.dataset.shown === text) return;
  box.dataset.shown = text;
  box.replaceChildren(...choices.map(([name, key]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "m-button", textContent: name });
    button.addEventListener("click", () => { act(key, false); offerLabels(); });
    return button;
  }));
}

function hint(message) {
  offerLabels();
  const keys = $("keys");
  if (message) {
    keys.textContent = message;
    return;
  }
  const part = (text) => text.split(/(\[[^\]]+\])/).map((piece) => {
    if (!piece.startsWith("[")) return piece;
    const key = document.createElement("kbd");
    key.textContent = piece.slice(1, -1);
    return key;
  });
  if (state.cursor === null) {
    keys.replaceChildren(...part("[Space], or a click on the chart: look back over the last minutes"));
    return;
  }
  let text = "[←] [→] move (with [Shift] by a second)";
  if (state.labels) {
    if (state.begin === null) text += ` · [B] begin a stretch to label${state.marks.length ? " · [Z] undo the last label" : ""}`;
    else if (state.end === null) text += " · [E] end the stretch here · [Esc] cancel";
    else text += " · label it: [1] to [7] for sentiment −3 to +3, or [N] [H] [S] [A] [F] [D] [U] for the emotion · [Esc] cancel";
  }
  keys.replaceChildren(...part(`${text} · [Space] back to now`));
}

const LETTERS = { n: "neutral", h: "happy", s: "sad", a: "angry", f: "fear", d: "disgust", u: "surprise" };

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("select")) return;
  // Space and Enter on a control are the control's own.
  if ([" ", "Enter"].includes(event.key) && event.target.closest("button, summary, input")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (act(key, event.shiftKey)) event.preventDefault();
}

/** What a key does; false if nothing. */
function act(key, shift) {
  const labelling = state.labels && state.cursor !== null;
  if (key === " ") state.cursor === null ? seek(newest()) : goLive();
  else if (key === "?") $("help-dialog").showModal();
  else if (key === "ArrowLeft" && state.cursor !== null) seek(state.cursor - (shift ? 1000 : 100));
  else if (key === "ArrowRight" && state.cursor !== null) seek(state.cursor + (shift ? 1000 : 100));
  else if (key === "Escape" && state.begin !== null) {
    Object.assign(state, { begin: null, end: null });
    seek(state.cursor);
  } else if (key === "Escape" && state.cursor !== null) goLive();
  else if (labelling && key === "b") {
    Object.assign(state, { begin: state.cursor, end: null });
    seek(state.cursor);
  } else if (labelling && key === "z") takeBack();
  else if (labelling && key === "e" && state.begin !== null) {
    [state.begin, state.end] = [Math.min(state.begin, state.cursor), Math.max(state.begin, state.cursor)];
    seek(state.cursor);
  } else if (labelling && state.end !== null && /^[1-7]$/.test(key)) label({ sentiment: Number(key) - 4 });
  else if (labelling && state.end !== null && LETTERS[key]) label({ emotion: LETTERS[key] });
  else return false;
  return true;
}

async function takeBack() {
  const answer = await send("/labels", null);
  hint(answer.error || answer.said);
}

async function label(value) {
  const stretch = { from_ms: state.begin, to_ms: state.end, ...value };
  const answer = await send("/labels", stretch);
  if (answer.error) {
    hint(answer.error);
    return;
  }
  Object.assign(state, { begin: null, end: null });
  seek(state.cursor);
  hint(answer.said);
}

// ---- recording

async function record() {
  if (state.record?.path) {
    await send("/record", { on: false });
    return;
  }
  for (const [name, key, what] of [["video", "video.preview", "picture"], ["audio", "audio.share", "sound"]]) {
    const open = Boolean(state.record.shared[name]);
    $(name).disabled = !open;
    $(name).checked &&= open;
    set($(name).parentElement.lastElementChild, open ? `Record the ${what} too` : `The ${what} cannot be recorded: this session does not share it (${key})`);
  }
  explain(state.record.error);
  $("dialog").showModal();
}

function explain(error) {
  const also = [$("video").checked && "the picture", $("audio").checked && "the sound"].filter(Boolean);
  const kept = also.length ? ` and ${also.join(" and ")}` : "";
  const without = also.length === 2 ? "" : ` ${also.length ? `Not ${$("video").checked ? "the sound" : "the picture"}` : "Neither picture nor sound"} is recorded.`;
  set($("kept"), error || `Features, predictions, words and the state of the processes${kept} are written to a file in ${state.record.folder}, on this machine, until you stop.${without}`);
}

async function startRecording() {
  $("start").disabled = true;
  setTimeout(() => { $("start").disabled = false; }, 1000);
  const answer = await send("/record", { on: true, video: $("video").checked, audio: $("audio").checked });
  if (answer.error) explain(answer.error);
  else $("dialog").close();
}

function wire() {
  document.addEventListener("keydown", press);
  $("pause").addEventListener("click", (event) => {
    event.currentTarget.blur();
    state.cursor === null ? seek(newest()) : goLive();
  });
  $("slider").addEventListener("input", (event) => seek(state.anchor + Number(event.target.value)));
  $("slider").addEventListener("keydown", (event) => event.preventDefault());
  $("theme").addEventListener("click", (event) => {
    event.currentTarget.blur();
    const wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("mien-theme", wanted);
    theme(wanted);
  });
  $("eye").addEventListener("click", (event) => {
    event.currentTarget.blur();
    Object.assign(state, { picture: !state.picture, drawn: 0 });
    set($("eye"), state.picture ? "Hide picture" : "Show picture");
  });
  $("mirror").addEventListener("click", () => {
    state.mirrored = $("mirror").getAttribute("aria-pressed") === "true" ? "0" : "1";
    localStorage.setItem("mien-mirrored", state.mirrored);
    drawMirror();
  });
  $("canvas").addEventListener("click", (event) => {
    const drawn = window.mien.drawn;
    const place = drawn && $("canvas").classList.contains("is-choosing") ? placeOf(event, $("canvas"), drawn.place, isMirrored()) : null;
    if (place) follow(place);
  });
  wireChoosing();
  wireCalibrating();
  $("help").addEventListener("click", () => $("help-dialog").showModal());
  $("help-close").addEventListener("click", () => $("help-dialog").close());
  $("help-dialog").addEventListener("close", () => localStorage.setItem("mien-explained", "1"));
  if (!localStorage.getItem("mien-explained") && !navigator.webdriver) $("help-dialog").showModal();
  $("record").addEventListener("click", (event) => { event.currentTarget.blur(); record(); });
  $("video").addEventListener("change", () => explain());
  $("audio").addEventListener("change", () => explain());
  $("cancel").addEventListener("click", () => $("dialog").close());
  $("start").addEventListener("click", startRecording);
}

start();
