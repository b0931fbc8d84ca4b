// The picture panel: the newest picture with its mesh, mirrored or hidden; a click on a face follows it.

import { follow, placeOf } from "./choices.js";
import { $, setText } from "./elements.js";
import { clearFrame, drawFrame } from "./picture.js";
import { state } from "./state.js";

/** Show a picture; null: none. */
export async function showFrame(frame) {
  state.frame = frame;
  state.drawn = frame?.t_us ?? 0;
  await redrawFrame();
}

async function redrawFrame() {
  const { frame } = state;
  if (!frame) {
    clearFrame($("canvas"));
    window.mien.drawn = null;
    return;
  }
  const place = await drawFrame($("canvas"), frame);
  window.mien.drawn = { t_us: frame.t_us, seq: frame.seq, points: frame.points, bytes: frame.jpeg.length, place };
}

/** People expect to see themselves as in a mirror; a clip is shown as it is. */
export function isMirrored() {
  return (state.mirrored ?? (state.origin === "LIVE" ? "1" : "0")) === "1";
}

export function drawMirror() {
  $("canvas").classList.toggle("is-mirrored", isMirrored());
  $("mirror").setAttribute("aria-pressed", `${isMirrored()}`);
}

export function wirePreview() {
  new ResizeObserver(redrawFrame).observe($("canvas"));
  $("eye").addEventListener("click", () => {
    Object.assign(state, { picture: !state.picture, drawn: 0 });
    setText($("eye"), state.picture ? "Hide picture" : "Show picture");
  });
  $("mirror").addEventListener("click", () => {
    state.mirrored = isMirrored() ? "0" : "1";
    localStorage.setItem("mien-mirrored", state.mirrored);
    drawMirror();
  });
  $("canvas").addEventListener("click", (event) => {
    const { drawn } = window.mien;
    const place = drawn && $("canvas").classList.contains("is-choosing") && placeOf(event, $("canvas"), drawn.place, isMirrored());
    if (place) follow(place);
  });
}
