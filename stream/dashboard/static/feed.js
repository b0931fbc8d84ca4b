// The feed: asks for what is new when the last update has been drawn, so a slow browser gets less, never a backlog.

import { T } from "./rows.js";
import { SESSION, state } from "./state.js";

let socket = null;

/** Connect, and again whenever the connection is lost. `onUpdate(update, picture)` is awaited. */
export function connect(onUpdate) {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/feed${location.search}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    Object.assign(state, { connected: true, edges: 0 });
    requestUpdate();
  };
  socket.onmessage = async (event) => {
    await onUpdate(...receive(event.data));
    // Not before the browser has painted: what nobody can see is not requested.
    requestAnimationFrame(requestUpdate);
  };
  socket.onclose = () => {
    state.connected = false;
    setTimeout(connect, 500, onUpdate);
  };
}

export function requestUpdate() {
  if (document.hidden || socket?.readyState !== WebSocket.OPEN) return;
  const { era, row, sound, words, edges, picture, drawn, cursor } = state;
  socket.send(JSON.stringify({ era, row, sound, words, edges, picture, drawn, at: cursor }));
}

/** Put an update into the state; returns it, and its picture if it has a new one. feed.py describes the format. */
function receive(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const update = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  // Where there are many sessions, this page is for one of them.
  if (update.sessions > 1 && SESSION === null) location.replace("/sessions");
  if (update.era !== state.era) Object.assign(state, { rows: [], sounds: [], drawn: 0, cursor: null });
  const { rows, sounds, silent_ms: silent, span_ms: span, marks, transcript, edges, picture, blank, ...values } = update;
  Object.assign(state, values, transcript, { silent, receivedAt: performance.now(), marks: marks.map(([from, to]) => ({ from, to })) });
  if (edges) state.edges = 1;
  state.rows.push(...rows);
  state.sounds.push(...sounds);
  const oldest = (state.rows.at(-1)?.[T] ?? 0) - span;
  for (const list of [state.rows, state.sounds]) {
    const count = list.findIndex((row) => row[T] >= oldest);
    if (count > 50) list.splice(0, count);
  }
  if (!picture) return [update, null];
  const begin = 4 + length, middle = begin + 8 * picture.points;
  return [update, { ...picture, points: new Float32Array(buffer.slice(begin, middle)), jpeg: new Uint8Array(buffer, middle) }];
}
