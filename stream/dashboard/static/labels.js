// Labelling stretches of a recording while looking back, and the line that says which keys do what.

import { $, make, makeButton, refill } from "./elements.js";
import { send } from "./server.js";
import { isPaused, state } from "./state.js";

const LETTERS = { n: "neutral", h: "happy", s: "sad", a: "angry", f: "fear", d: "disgust", u: "surprise" };

/** Where labelling stands: null, "idle", "begun", or "ended": then a value is chosen. */
function stage() {
  if (!state.labels || !isPaused()) return null;
  return state.begin === null ? "idle" : state.end === null ? "begun" : "ended";
}

/** What a key does while labelling; false if nothing. */
export function pressLabelKey(key) {
  const at = stage();
  if (key === "Escape" && state.begin !== null) setStretch(null, null);
  else if (at === null) return false;
  else if (key === "b") setStretch(state.cursor, null);
  else if (key === "z") undoLabel();
  else if (key === "e" && at !== "idle") setStretch(Math.min(state.begin, state.cursor), Math.max(state.begin, state.cursor));
  else if (at === "ended" && /^[1-7]$/.test(key)) label({ sentiment: Number(key) - 4 });
  else if (at === "ended" && LETTERS[key]) label({ emotion: LETTERS[key] });
  else return false;
  return true;
}

function setStretch(begin, end) {
  Object.assign(state, { begin, end });
  showHint();
}

async function undoLabel() {
  const answer = await send("/labels", null);
  showHint(answer.error || answer.said);
}

async function label(value) {
  const answer = await send("/labels", { from_ms: state.begin, to_ms: state.end, ...value });
  if (!answer.error) Object.assign(state, { begin: null, end: null });
  showHint(answer.error || answer.said);
}

/** The labelling keys as buttons, for people without a keyboard. */
export function drawLabels() {
  const choices = {
    idle: [["Begin here", "b"], ...(state.marks.length ? [["Undo last label", "z"]] : [])],
    begun: [["End here", "e"], ["Cancel", "Escape"]],
    ended: [...[-3, -2, -1, 0, 1, 2, 3].map((value) => [`${value}`.replace("-", "−"), `${value + 4}`]),
      ...Object.entries(LETTERS).map(([key, name]) => [name, key]), ["Cancel", "Escape"]],
  }[stage()] ?? [];
  const box = $("labels");
  const hadFocus = box.contains(document.activeElement);
  box.hidden = !choices.length;
  refill(box, choices, () => choices.map(([name, key]) => makeButton(name, () => pressLabelKey(key))));
  if (hadFocus && !box.contains(document.activeElement)) box.firstElementChild?.focus();
}

/** Show a message, or else the keys that do something now. */
export function showHint(message) {
  drawLabels();
  if (message) {
    $("keys").textContent = message;
    return;
  }
  const labelling = {
    idle: ` · [B] begin a stretch to label${state.marks.length ? " · [Z] undo the last label" : ""}`,
    begun: " · [E] end the stretch here · [Esc] cancel",
    ended: " · label it: [1] to [7] for sentiment −3 to +3, or [N] [H] [S] [A] [F] [D] [U] for the emotion · [Esc] cancel",
  }[stage()] ?? "";
  const text = isPaused() ? `[←] [→] move (with [Shift] by a second)${labelling} · [Space] back to now`
    : "[Space], or a click on the chart: look back over the last minutes";
  $("keys").replaceChildren(...text.split(/\[([^\]]+)\]/).map((piece, i) => (i % 2 ? make("kbd", { textContent: piece }) : piece)));
}
