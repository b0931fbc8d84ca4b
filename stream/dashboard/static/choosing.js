// Camera, microphone, and which of several faces is followed.

import { send } from "./server.js";

const NAMES = { video: "camera", audio: "microphone" };
const offers = {};
let signature = "";

const $ = (name) => document.querySelector(`.js-${name}`);
const picker = (worker) => document.querySelector(`.js-pick-${worker}`);

function say(text) {
  $("devices-said").textContent = text;
}

/** What can be chosen now; the list stays as it is while somebody has it open. */
async function refresh(worker) {
  const offer = await send("/choices", { worker });
  if (!offer.error) show(worker, offer);
}

function show(worker, offer) {
  const select = picker(worker).querySelector("select");
  const text = JSON.stringify([offer.sources, offer.used]);
  if (offers[worker] === text) return;
  offers[worker] = text;
  select.replaceChildren(...offer.sources.map(({ id, name }) =>
    Object.assign(document.createElement("option"), { value: id, textContent: name })));
  select.value = offer.used;
}

async function pick(worker, select) {
  select.disabled = true;
  say(`opening the ${NAMES[worker]} …`);
  const offer = await send("/choices", { worker, source: select.value });
  select.disabled = false;
  offers[worker] = "";
  if (offer.error) {
    say(offer.error);
    await refresh(worker);
  } else {
    show(worker, offer);
    say("");
  }
}

/** Follow the face at a place, x and y as fractions of the picture, or "largest". */
export async function follow(face) {
  const offer = await send("/choices", { worker: "video", face });
  say(offer.error || "");
}

export function wireChoosing() {
  for (const worker of Object.keys(NAMES)) {
    const select = picker(worker).querySelector("select");
    for (const sign of ["pointerdown", "focus"]) select.addEventListener(sign, () => refresh(worker));
    select.addEventListener("change", () => pick(worker, select));
  }
}

let known = "";

/** @param state of the page: `choosers`, the workers at which something can be chosen, and `source`, what is captured. */
export function drawChoosing(state) {
  const workers = Object.keys(NAMES).filter((worker) => state.choosers.includes(worker));
  $("devices").hidden = !workers.length;
  for (const worker of Object.keys(NAMES)) picker(worker).hidden = !workers.includes(worker);
  const now = JSON.stringify([workers, state.source]);
  if (now === known) return;
  known = now;
  workers.forEach(refresh);
}

/** The faces in view, from left to right as they are seen, each with a button; hidden while there is no choice. */
export function drawFaces(state, isMirrored) {
  const frame = state.frame;
  const faces = frame && state.cursor === null && state.choosers.includes("video") ? frame.faces || [] : [];
  const chosen = Boolean(frame?.chosen);
  const is = faces.length > 1 || (chosen && state.cursor === null);
  const box = $("faces");
  box.hidden = !is;
  $("canvas").classList.toggle("is-choosing", is);
  if (!is) {
    signature = "";
    return;
  }
  const whom = chosen ? "the one you chose" : "the largest";
  const many = faces.length === 1 ? "1 face" : `${faces.length} faces`;
  const said = `${many} in view, following ${whom}${faces.length > 1 ? ": click another to follow it" : ""}`;
  if ($("faces-said").textContent !== said) $("faces-said").textContent = said;
  const order = isMirrored ? [...faces].reverse() : faces;
  const followed = nearest(order, frame.points);
  const now = JSON.stringify([faces.length, chosen, isMirrored, followed]);
  if (now === signature) return;
  signature = now;
  const held = document.activeElement?.dataset.face;
  const buttons = order.map((_, i) => button(`${i + 1}`, `follow face ${i + 1} from the left`, i === followed, () => {
    const at = isMirrored ? state.frame.faces.length - 1 - i : i;
    const face = state.frame?.faces[at];
    if (face) follow(middle(face));
  }));
  if (chosen) buttons.push(button("Largest", "follow the largest face", false, () => follow("largest")));
  $("faces-choices").replaceChildren(...buttons);
  buttons.find((each) => each.dataset.face === held)?.focus();
}

function button(text, label, pressed, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", className: "m-eye", textContent: text, title: label });
  made.dataset.face = text;
  made.setAttribute("aria-label", label);
  made.setAttribute("aria-pressed", `${pressed}`);
  made.addEventListener("click", act);
  return made;
}

function middle([left, top, right, bottom]) {
  return [(left + right) / 2, (top + bottom) / 2].map((part) => Math.min(Math.max(part, 0), 1));
}

/** Which of the faces the mesh lies on; -1 without a mesh. */
function nearest(faces, points) {
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
