// All sessions side by side; a click opens one. Asked for once a second, and not while nobody can see it.

import { fillScale, set, sentimentColour, showBadges, signed } from "./words.js";

const EVERY_MS = 1000, STALE_MS = 3000;
const WELL = ["running", "ready", "ended"];
const ORDER = ["failed", "silent", "degraded", "starting", "running", "ready", "ended", "stopped"];
const $ = (name) => document.querySelector(`.js-${name}`);
const state = { sessions: [], endpoint: "", received: 0 };
const tiles = new Map();
// What tests may look at.
window.mien = { state };

async function ask() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/sessions.json");
    if (answer.ok) Object.assign(state, await answer.json(), { received: performance.now() });
  } catch (error) {
    // The badge says so.
  }
  draw();
}

const rank = (session) => (ORDER.indexOf(session.state) + ORDER.length + 1) % (ORDER.length + 1);
const ORDERS = {
  state: (a, b) => rank(a) - rank(b),
  name: () => 0,
  sentiment: (a, b) => (a.sentiment ?? 9) - (b.sentiment ?? 9),
  p99: (a, b) => (b.p99_ms ?? -1) - (a.p99_ms ?? -1),
};

function draw() {
  const lost = performance.now() - state.received > STALE_MS;
  const counts = new Map();
  for (const session of state.sessions) counts.set(session.state, (counts.get(session.state) ?? 0) + 1);
  showBadges($("badges"), lost
    ? [["STALE", state.received ? "STALE · the dashboard has stopped" : "connecting"]]
    : [...counts].sort(([a], [b]) => ORDER.indexOf(a) - ORDER.indexOf(b)).map(([name, count]) => [WELL.includes(name) ? "LIVE" : "ABSTAINS", `${count} ${name}`]));
  set($("source"), state.endpoint && `listening on ${state.endpoint}`);
  const query = $("filter").value.trim().toLowerCase();
  const shown = state.sessions.filter((session) => `${session.name} ${session.state}`.toLowerCase().includes(query));
  shown.sort((a, b) => ORDERS[$("order").value](a, b) || a.name.localeCompare(b.name, "en", { numeric: true }));
  $("empty").hidden = lost || shown.length > 0;
  set($("empty"), state.sessions.length ? "No session matches."
    : `Listening on ${state.endpoint || "one session"}. No predictions yet: start \`mien run\` or \`mien fleet run\` on this port.`);
  document.body.classList.toggle("is-lost", lost);
  const visible = new Set(shown.map((session) => session.name));
  for (const [name, tile] of tiles) {
    if (visible.has(name)) continue;
    tile.remove();
    tiles.delete(name);
  }
  const box = $("tiles");
  shown.forEach((session, at) => {
    const tile = tiles.get(session.name) ?? makeTile(session.name);
    if (box.children[at] !== tile) box.insertBefore(tile, box.children[at] ?? null);
    fill(tile, session);
  });
}

function makeTile(name) {
  const tile = document.createElement("a");
  tile.className = "m-panel m-tile";
  tile.href = `/?session=${encodeURIComponent(name)}`;
  tile.innerHTML = '<div class="m-top"><b></b><em></em></div><div class="m-feeling"><span></span><span></span></div>'
    + '<div class="m-scale"><i></i></div><div class="m-top"><span></span><span></span></div><p></p>';
  tile.querySelector("b").textContent = name;
  tiles.set(name, tile);
  return tile;
}

function fill(tile, session) {
  const [head, feeling, scale, foot, note] = tile.children;
  tile.dataset.state = session.state;
  tile.classList.toggle("is-bad", !WELL.includes(session.state));
  set(head.children[1], session.state);
  const sentiment = session.sentiment;
  set(feeling.children[0], sentiment === null ? "–" : signed(sentiment));
  feeling.children[0].style.color = sentiment === null ? "" : sentimentColour(sentiment);
  set(feeling.children[1], session.emotion ? `${session.emotion} ${Math.round(100 * session.confidence)} %` : "");
  fillScale(scale.firstElementChild.style, sentiment);
  set(foot.children[0], session.per_second ? `${session.per_second.toFixed(1)}/s` : "–");
  set(foot.children[1], session.p99_ms === null ? "" : `p50 ${format(session.p50_ms)}, p99 ${format(session.p99_ms)} ms`);
  set(note, session.note);
  tile.title = session.note;
}

function format(ms) {
  return ms < 10 ? ms.toFixed(1) : `${Math.round(ms)}`;
}

$("filter").addEventListener("input", draw);
$("order").addEventListener("change", draw);
$("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("mien-theme", theme);
  document.documentElement.dataset.theme = theme;
});
document.addEventListener("visibilitychange", ask);
setInterval(ask, EVERY_MS);
ask();
