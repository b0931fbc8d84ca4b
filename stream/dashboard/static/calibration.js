// A person's resting face and voice: measured while the session runs, stored on this machine, listed and deleted.

import { $, make, makeButton, setText } from "./elements.js";
import { send } from "./server.js";

const WORKERS = ["video", "audio"];
const COUNT_MS = 200;
// The last rows are made a moment after their time.
const RETRY_MS = 500, RETRIES = 10;
let endsAt = 0; // of the measurement in progress, on the page's clock
let measured = null; // what is being measured
let timer = null;

function showMessage(text) {
  setText($("calibration-said"), text);
}

/** Show an answer: its error, or its people and a message. */
function showAnswer(answer, message) {
  showMessage(answer.error || message);
  if (!answer.people) return;
  $("people").replaceChildren(...answer.people.map((person) => {
    const kinds = ["face", "voice"].filter((kind) => person[kind]).join(" and ");
    const text = [person.name, kinds, person.made, person.state === "can be used" ? "" : person.state].filter(Boolean).join(" · ");
    const button = makeButton("Delete", async () => {
      showAnswer(await send("/people", { act: "delete", name: person.name }), `Deleted what was stored for ${person.name}.`);
      $("person").focus();
    });
    button.setAttribute("aria-label", `delete what is stored for ${person.name}`);
    return make("div", {}, make("span", { textContent: text }), button);
  }));
}

function showMeasuring(on) {
  $("before").hidden = on;
  $("measuring").hidden = !on;
  $("calibration-start").hidden = on;
  setText($("calibration-close"), on ? "Cancel" : "Close");
}

async function open() {
  showMeasuring(false);
  showMessage("");
  $("calibration").showModal();
  const answer = await send("/people", { act: "list" });
  showAnswer(answer, $("calibration-said").textContent);
}

async function start() {
  const workers = WORKERS.filter((worker) => $(`of-${worker}`).checked && !$(`of-${worker}`).disabled);
  const name = $("person").value.trim();
  $("calibration-start").disabled = true;
  const answer = await send("/people", { act: "begin", name, workers });
  $("calibration-start").disabled = false;
  if (answer.error) {
    showMessage(answer.error);
    return;
  }
  if (!$("calibration").open) return;
  measured = { name, workers };
  endsAt = performance.now() + 1000 * answer.seconds;
  showMessage(`Measuring for ${answer.seconds} seconds.`);
  $("instruction").textContent = [
    workers.includes("video") && "Look into the camera with a relaxed face, as if nobody were there.",
    answer.sentence && "Read this aloud in your everyday voice (or any calm sentence in your language):",
  ].filter(Boolean).join(" ");
  $("read").textContent = answer.sentence;
  showMeasuring(true);
  countDown();
  timer = setInterval(countDown, COUNT_MS);
}

async function countDown() {
  const left = Math.max(Math.ceil((endsAt - performance.now()) / 1000), 0);
  setText($("countdown"), `${left}`);
  if (left > 0) return;
  const order = { act: "keep", ...measured };
  stop();
  showMessage("Done; saving …");
  setText($("calibration-close"), "Close");
  let answer = null;
  for (let attempt = 0; attempt < RETRIES; attempt++) {
    await new Promise((done) => setTimeout(done, RETRY_MS));
    answer = await send("/people", order);
    if (!answer.error?.includes("still being measured")) break;
  }
  showAnswer(answer, `Saved in ${answer.path}, readable by you alone. Use it with: mien run --person ${order.name}`);
  showMeasuring(false);
}

function stop() {
  clearInterval(timer);
  [timer, measured] = [null, null];
}

function close() {
  if (measured) {
    stop();
    showMeasuring(false);
    showMessage("Nothing was stored.");
  } else $("calibration").close();
}

export function wireCalibration() {
  $("calibrate").addEventListener("click", open);
  $("calibration-start").addEventListener("click", start);
  $("calibration-close").addEventListener("click", close);
  $("calibration").addEventListener("close", stop);
  $("person").addEventListener("keydown", (event) => { if (event.key === "Enter") start(); });
}

/** @param state of the page: `choosers`, the workers that can measure. */
export function drawCalibration(state) {
  for (const worker of WORKERS) $(`of-${worker}`).disabled = !state.choosers.includes(worker);
}
