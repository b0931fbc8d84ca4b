// All sessions side by side; a click opens one. Asked for once a second, and not while nobody can see it.

import { $, make, setText, showBadges, showSentiment } from "./elements.js";
import { formatLatency, formatPercent, MISSING } from "./format.js";

const EVERY_MS = 1000, STALE_MS = 3000;
const HEALTHY = ["running", "ready", "ended"];
const ORDER = ["failed", "silent", "degraded", "starting", "running", "ready", "ended", "stopped"];
const state = { sessions: [], endpoint: "", receivedAt: 0 };
const tiles = new Map();
// For tests.
window.mien = { state };

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/sessions.json");
    if (answer.ok) Object.assign(state, await answer.json(), { receivedAt: performance.now() });
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
  const lost = performance.now() - state.receivedAt > STALE_MS;
  const counts = new Map();
  for (const session of state.sessions) counts.set(session.state, (counts.get(session.state) ?? 0) + 1);
  showBadges($("badges"), lost
    ? [["STALE", state.receivedAt ? "STALE · the dashboard has stopped" : "connecting"]]
    : [...counts].sort(([a], [b]) => ORDER.indexOf(a) - ORDER.indexOf(b)).map(([name, count]) => [HEALTHY.includes(name) ? "LIVE" : "ABSTAINS", `${count} ${name}`]));
  setText($("source"), state.endpoint && `listening on ${state.endpoint}`);
  const query = $("filter").value.trim().toLowerCase();
  const shown = state.sessions.filter((session) => `${session.name} ${session.state}`.toLowerCase().includes(query));
  shown.sort((a, b) => ORDERS[$("order").value](a, b) || a.name.localeCompare(b.name, "en", { numeric: true }));
  $("empty").hidden = lost || shown.length > 0;
  setText($("empty"), state.sessions.length ? "No session matches."
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
  const tile = make("a", { className: "m-panel m-tile", href: `/?session=${encodeURIComponent(name)}` });
  tile.innerHTML = '<div class="m-top"><b></b><em></em></div><div class="m-feeling"><span></span><span></span></div>'
    + '<div class="m-scale"><i></i></div><div class="m-top"><span></span><span></span></div><p></p>';
  tile.querySelector("b").textContent = name;
  tiles.set(name, tile);
  return tile;
}

function fill(tile, session) {
  const [head, feeling, scale, foot, note] = tile.children;
  tile.dataset.state = session.state;
  tile.classList.toggle("is-bad", !HEALTHY.includes(session.state));
  setText(head.children[1], session.state);
  showSentiment(feeling.children[0], scale.firstElementChild, session.sentiment);
  setText(feeling.children[1], session.emotion ? `${session.emotion} ${formatPercent(session.confidence)}` : "");
  setText(foot.children[0], session.per_second ? `${session.per_second.toFixed(1)}/s` : MISSING);
  setText(foot.children[1], session.p99_ms === null ? "" : `p50 ${formatLatency(session.p50_ms)}, p99 ${formatLatency(session.p99_ms)} ms`);
  setText(note, session.note);
  tile.title = session.note;
}

$("filter").addEventListener("input", draw);
$("order").addEventListener("change", draw);
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, EVERY_MS);
refresh();
