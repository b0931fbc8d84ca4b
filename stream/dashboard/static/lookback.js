// Looking back: the moment shown, its slider, and the keys of the page.

import { $, setText } from "./elements.js";
import { formatSeconds } from "./format.js";
import { pressLabelKey, showHint } from "./labels.js";
import { T } from "./rows.js";
import { isPaused, newest, state } from "./state.js";

const STEP_MS = 100, LONG_STEP_MS = 1000;
let onMove = null;

/** Pause the page at capture time `t`, in ms. */
export function seek(t) {
  if (!state.rows.length) return;
  if (!isPaused()) state.anchor = newest();
  state.cursor = Math.round(Math.min(Math.max(t, state.rows[0][T]), state.anchor));
  moved();
}

function resume() {
  Object.assign(state, { cursor: null, begin: null, end: null, drawn: 0 });
  moved();
}

function moved() {
  onMove();
  showHint();
}

function togglePause() {
  if (isPaused()) resume();
  else seek(newest());
}

export function drawLookback() {
  $("scrub").hidden = !isPaused();
  $("pause").setAttribute("aria-pressed", `${isPaused()}`);
  setText($("pause"), isPaused() ? "Back to now" : "Pause");
  if (!isPaused()) return;
  const ago = `−${formatSeconds(state.anchor - state.cursor)} s`;
  Object.assign($("slider"), { min: state.rows[0][T] - state.anchor, max: 0, value: state.cursor - state.anchor });
  $("slider").setAttribute("aria-valuetext", ago);
  setText($("ago"), ago);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("select")) return;
  // Space and Enter on a control are the control's own.
  if ([" ", "Enter"].includes(event.key) && event.target.closest("button, summary, input")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const step = event.shiftKey ? LONG_STEP_MS : STEP_MS;
  if (pressLabelKey(key)) return event.preventDefault();
  if (key === " ") togglePause();
  else if (key === "?") $("help-dialog").showModal();
  else if (key === "ArrowLeft" && isPaused()) seek(state.cursor - step);
  else if (key === "ArrowRight" && isPaused()) seek(state.cursor + step);
  else if (key === "Escape" && isPaused()) resume();
  else return;
  event.preventDefault();
}

/** `redraw` is called when another moment is to be shown. */
export function wireLookback(redraw) {
  onMove = redraw;
  document.addEventListener("keydown", press);
  $("pause").addEventListener("click", togglePause);
  $("slider").addEventListener("input", (event) => seek(state.anchor + Number(event.target.value)));
  showHint();
}
