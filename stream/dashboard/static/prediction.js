// The numbers of one moment: sentiment, emotions, shares, the words until then, and the sound level.

import { $, $$, make, setText, showSentiment } from "./elements.js";
import { describeSentiment, formatPercent, formatSigned, MISSING, sentimentColour } from "./format.js";
import { CONFIDENCE, emotionsOf, EMOTIONS, gatesOf, SMOOTH, T } from "./rows.js";
import { isLost, isPaused, rowAt, state } from "./state.js";

// The microphone of the last seconds.
const QUIET_DB = -50, LOUD_DB = -6, LOWEST_DB = -70, SPEECH_MS = 10000, LEVEL_MS = 3000;
const WORDS = 60;
export const LEVEL = 1, VOICE = 3; // columns of a row of sound, in dB and whether it is speech

export function drawPrediction() {
  const row = isPaused() ? rowAt(state.cursor) : state.stale || isLost() ? null : state.now;
  const sentiment = row ? row[SMOOTH] : null;
  showSentiment($("number"), $("fill"), sentiment);
  setText($("word"), describeSentiment(sentiment));
  const emotions = emotionsOf(row);
  setText($("top"), emotions ? EMOTIONS[emotions.top] : MISSING);
  setText($("confidence"), emotions ? `${formatPercent(row[CONFIDENCE])} sure` : "");
  drawBars($$("emotion"), emotions?.shares, emotions?.top);
  drawBars($$("gate"), gatesOf(row));
}

function drawBars(bars, shares, top) {
  bars.forEach((bar, i) => {
    bar.classList.toggle("is-top", i === top);
    bar.children[1].firstElementChild.style.transform = `scaleX(${shares?.[i] ?? 0})`;
    setText(bar.children[2], formatPercent(shares?.[i] ?? null));
  });
}

export function drawSound() {
  const rows = isPaused() || isLost() || state.stale ? [] : state.sounds;
  const last = rows.at(-1)?.[T] ?? 0;
  const recent = rows.filter((row) => row[T] > last - LEVEL_MS).map((row) => row[LEVEL]);
  const loudest = Math.max(...recent);
  const speaks = rows.some((row) => row[VOICE] && row[T] > last - SPEECH_MS);
  let text = "";
  if (!recent.length) text = isPaused() ? "paused" : "no sound";
  else if (loudest > LOUD_DB) text = "clipping: move away or lower the gain";
  else if (speaks) text = loudest < QUIET_DB ? "too quiet" : "speech";
  else if (last - rows[0][T] > SPEECH_MS) text = loudest < QUIET_DB ? "too quiet" : "no speech heard";
  setText($("heard"), text);
  $("heard").parentElement.classList.toggle("is-bad", /clipping|quiet|no s/.test(text));
  const level = ((recent.at(-1) ?? LOWEST_DB) - LOWEST_DB) / -LOWEST_DB;
  $("level").style.transform = `scaleX(${Math.min(Math.max(level, 0), 1)})`;
}

export function drawTranscript() {
  const until = state.cursor ?? Infinity;
  const words = [...state.said.filter((word) => word[1] <= until).slice(-WORDS), ...(isPaused() ? [] : state.tentative)];
  const spans = words.map(([text, , , committed, sentiment, uncertain]) => {
    const span = make("span", { textContent: uncertain ? `${text}?` : text });
    if (uncertain) {
      Object.assign(span, { className: "is-uncertain", title: "uncertain: not used in predictions" });
    } else if (!committed) span.className = "is-tentative";
    else if (sentiment !== null) {
      span.style.borderBottomColor = sentimentColour(sentiment);
      span.style.color = `color-mix(in oklab, ${sentimentColour(sentiment)} 55%, var(--ink))`;
      span.title = `sentiment ${formatSigned(sentiment)} of this phrase`;
    }
    return span;
  });
  if (!spans.length) spans.push(make("span", { className: "is-none", textContent: "Nothing has been said yet." }));
  $("said").replaceChildren(...spans.flatMap((span) => [span, " "]));
}
