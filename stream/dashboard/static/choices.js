// Camera, microphone, and which of several faces is followed.

import { $, make, makeButton, refill, setText } from "./elements.js";
import { send } from "./server.js";

const DEVICES = { video: "camera", audio: "microphone" };
const RETRY_MS = 3000;
const picker = (worker) => $(`pick-${worker}`).querySelector("select");
let known = "";

function showMessage(text) {
  setText($("devices-said"), text);
}

/** List what can be chosen now; a worker that does not answer is asked again. */
async function refresh(worker) {
  const offer = await send("/choices", { worker });
  if (offer.error) setTimeout(() => { known = ""; }, RETRY_MS);
  else showOffer(worker, offer);
}

function showOffer(worker, { sources, used }) {
  const select = picker(worker);
  // A list that somebody has open must not change for nothing.
  refill(select, sources, () => sources.map(({ id, name }) => make("option", { value: id, textContent: name })));
  select.value = used;
}

async function choose(worker) {
  const select = picker(worker);
  select.disabled = true;
  showMessage(`opening the ${DEVICES[worker]} …`);
  const offer = await send("/choices", { worker, source: select.value });
  select.disabled = false;
  showMessage(offer.error || "");
  if (offer.error) await refresh(worker);
  else showOffer(worker, offer);
}

/** Follow the face at a place, x and y as fractions of the picture, or "largest". */
export async function follow(face) {
  const offer = await send("/choices", { worker: "video", face });
  showMessage(offer.error || "");
}

export function wireChoices() {
  for (const worker of Object.keys(DEVICES)) {
    for (const kind of ["pointerdown", "focus"]) picker(worker).addEventListener(kind, () => refresh(worker));
    picker(worker).addEventListener("change", () => choose(worker));
  }
}

/** @param state of the page: `choosers`, the workers at which something can be chosen, and `source`, what is captured. */
export function drawDevices({ choosers, source }) {
  const workers = Object.keys(DEVICES).filter((worker) => choosers.includes(worker));
  $("devices").hidden = !workers.length;
  for (const worker of Object.keys(DEVICES)) $(`pick-${worker}`).hidden = !workers.includes(worker);
  const now = JSON.stringify([workers, source]);
  if (now === known) return;
  known = now;
  workers.forEach(refresh);
}

/** The faces in view, from left to right as they are seen, each with a button; hidden while there is no choice. */
export function drawFaces(state, isMirrored) {
  const { choosers, cursor, frame } = state;
  const faces = frame && cursor === null && choosers.includes("video") ? frame.faces || [] : [];
  const chosen = Boolean(frame?.chosen);
  const shown = faces.length > 1 || (chosen && cursor === null);
  $("faces").hidden = !shown;
  $("canvas").classList.toggle("is-choosing", shown);
  if (!shown) return;
  const count = faces.length === 1 ? "1 face" : `${faces.length} faces`;
  setText($("faces-said"), `${count} in view, following ${chosen ? "the one you chose" : "the largest"}${
    faces.length > 1 ? ": click another to follow it" : ""}`);
  const order = isMirrored ? [...faces].reverse() : faces;
  const followed = nearestFace(order, frame.points);
  const focused = document.activeElement?.dataset.face;
  refill($("faces-choices"), [faces.length, chosen, isMirrored, followed], () => {
    const buttons = order.map((_, i) => makeFaceButton(`${i + 1}`, `follow face ${i + 1} from the left`, i === followed, () => {
      const face = state.frame?.faces[isMirrored ? state.frame.faces.length - 1 - i : i];
      if (face) follow(middle(face));
    }));
    return chosen ? [...buttons, makeFaceButton("Largest", "follow the largest face", false, () => follow("largest"))] : buttons;
  });
  if (focused && document.activeElement?.dataset.face !== focused) document.querySelector(`[data-face="${focused}"]`)?.focus();
}

function makeFaceButton(text, label, pressed, onClick) {
  const button = Object.assign(makeButton(text, onClick, "m-eye"), { title: label, ariaLabel: label, ariaPressed: `${pressed}` });
  button.dataset.face = text;
  return button;
}

function middle([left, top, right, bottom]) {
  return [(left + right) / 2, (top + bottom) / 2].map((part) => Math.min(Math.max(part, 0), 1));
}

/** Which of the faces the mesh lies on; -1 without a mesh. */
function nearestFace(faces, points) {
  if (!points.length || !faces.length) return -1;
  let x = 0, y = 0;
  for (let i = 0; i < points.length; i += 2) {
    x += points[i];
    y += points[i + 1];
  }
  const away = faces.map((face) => Math.hypot(middle(face)[0] - (2 * x) / points.length, middle(face)[1] - (2 * y) / points.length));
  return away.indexOf(Math.min(...away));
}

/** The place of a click in the picture as fractions, in a face or beside it; null outside of the picture. */
export function placeOf(event, canvas, place, isMirrored) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const x = ((event.clientX - box.left) * scale - place.left) / place.width;
  const y = ((event.clientY - box.top) * scale - place.top) / place.height;
  return x < 0 || x > 1 || y < 0 || y > 1 ? null : [isMirrored ? 1 - x : x, y];
}
