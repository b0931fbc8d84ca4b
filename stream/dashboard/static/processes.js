// What runs and how well: badges, the source, figures of each process, and what to start where nothing runs.

import { $, make, refill, setText, showBadges } from "./elements.js";
import { formatLatency, formatSeconds, MISSING } from "./format.js";
import { MODALITIES, SMOOTH } from "./rows.js";
import { isLost, isPaused, rowAt, SESSION, silentMs, state, zero } from "./state.js";

const EMPTY_MS = 5000; // without a prediction, until the page says what to start

export function drawBadges() {
  setText($("source"), [SESSION, state.source, state.endpoint && `listening on ${state.endpoint}`].filter(Boolean).join(" · "));
  let { badges } = state;
  if (isLost()) {
    const seconds = state.receivedAt ? formatSeconds(performance.now() - state.receivedAt, 0) : 0;
    badges = [["STALE", state.connected ? `STALE ${seconds} s` : "STALE · the dashboard has stopped"]];
  } else if (isPaused()) {
    // The past is shown: of the present only the recording matters.
    badges = [["PAUSED", `PAUSED −${formatSeconds(zero() - state.cursor)} s`], ...badges.filter(([kind]) => kind === "REC")];
    if (rowAt(state.cursor)?.[SMOOTH] === null) badges.push(["ABSTAINS", "ABSTAINED"]);
  }
  showBadges($("badges"), badges);
  setText($("announcement"), badges.map(([kind]) => kind).join(", "));
}

export function drawEmpty() {
  const empty = $("empty");
  const isSilent = !state.rows.length || (state.stale && !isPaused() && silentMs() > EMPTY_MS);
  empty.hidden = !state.endpoint || isLost() || !isSilent;
  empty.classList.toggle("is-above", state.rows.length > 0);
  const text = `Listening on ${state.endpoint}. No predictions${state.rows.length ? " any more" : " yet"}: start `;
  refill(empty, text, () => [text, make("code", { textContent: "mien run" }), " or ", make("code", { textContent: "mien demo" }), " on this port."]);
  setText($("endpoint"), state.endpoint);
}

export function drawProcesses() {
  const { facts } = state;
  if (!facts) return;
  for (const name of MODALITIES) {
    const { age_ms: age, bad, causes, drops, fps, note, state: status } = facts[name];
    fill(name, {
      state: isLost() ? "unknown" : status,
      age: age === null || state.stale || isLost() ? MISSING : age < 1000 ? `${age} ms` : `${formatSeconds(age)} s`,
      fps: fps === null ? MISSING : `${fps.toFixed(fps < 10 ? 1 : 0)}/s`,
      drops: `${drops ?? MISSING}`,
      note,
    }, bad, causes);
  }
  const { bad, causes, checkpoint, drops, end_to_end: end, engine, note, per_second: rate, software, state: status } = facts.model;
  const pair = (values) => (values && !state.stale && !isLost() ? `${values.map(formatLatency).join(" / ")} ms` : MISSING);
  fill("model", {
    state: isLost() ? "unknown" : status, rate: `${rate.toFixed(1)}/s`, end: pair(end), software: pair(software),
    drops: `${drops}`, engine: engine || MISSING, model: checkpoint || MISSING, note,
  }, bad, causes);
}

function fill(name, texts, bad, causes) {
  const box = document.querySelector(`[data-fact="${name}"]`);
  for (const [key, text] of Object.entries(texts)) {
    const slot = box.querySelector(`[data-slot="${key}"]`);
    setText(slot, text);
    if (key === "state") slot.classList.toggle("is-bad", bad || isLost());
    if (key === "drops") slot.title = causes;
    if (key === "note") slot.title = text;
  }
}
