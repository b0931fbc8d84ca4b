// The state of the page: the server's last update, and what the user has chosen.

import { nearestRow, T } from "./rows.js";

const STALE_MS = 2000;
export const SESSION = new URLSearchParams(location.search).get("session"); // null: any

export const state = {
  // The history and its cursors.
  era: -1, row: 0, sound: 0, words: -1, edges: 0, rows: [], sounds: [], said: [], tentative: [],
  // The last update.
  now: null, facts: null, silent: null, stale: true, badges: [], source: "", origin: "", endpoint: "", choosers: [],
  record: null, labels: null, note: "", marks: [], sessions: 0, connected: false, receivedAt: 0,
  // The picture, and the capture time of the one that is drawn.
  frame: null, drawn: 0,
  // The user's: the moment looked at (null: now), the moment of the pause, the stretch to label, the picture.
  cursor: null, anchor: 0, begin: null, end: null, picture: true, mirrored: localStorage.getItem("mien-mirrored"),
};
// For tests: the state, and what has been drawn last.
window.mien = { state, drawn: null };

export function isPaused() {
  return state.cursor !== null;
}

/** Whether the server has stopped answering. */
export function isLost() {
  return !state.connected || performance.now() - state.receivedAt > STALE_MS;
}

export function newest() {
  return state.rows.at(-1)?.[T] ?? 0;
}

/** What all times on the page count from: now, or the moment of the pause. */
export function zero() {
  return isPaused() ? state.anchor : newest();
}

export function rowAt(t) {
  return nearestRow(state.rows, t);
}

/** Milliseconds since the last prediction. */
export function silentMs() {
  return (state.silent ?? 0) + (performance.now() - state.receivedAt);
}
