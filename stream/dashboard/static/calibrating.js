// A person's rest: measured while the session runs, kept on this machine, listed and deleted.

import { send } from "./server.js";

const $ = (name) => document.querySelector(`.js-${name}`);
const WORKERS = ["video", "audio"];
let ends = 0; // when the measurement that runs is over, on the page's clock
let wanted = null; // what is being measured
let timer = null;

function say(text) {
  $("calibration-said").textContent = text;
}

function show(people) {
  $("people").replaceChildren(...people.map((person) => {
    const line = document.createElement("div");
    const kinds = ["face", "voice"].filter((kind) => person[kind]).join(" and ");
    const text = [person.name, kinds, person.made, person.state === "can be used" ? "" : person.state].filter(Boolean).join(" · ");
    const button = Object.assign(document.createElement("button"), { type: "button", className: "m-button", textContent: "Delete" });
    button.setAttribute("aria-label", `delete what is stored for ${person.name}`);
    button.addEventListener("click", async () => {
      const answer = await send("/people", { act: "delete", name: person.name });
      say(answer.error || `Deleted what was stored for ${person.name}.`);
      if (answer.people) show(answer.people);
      $("person").focus();
    });
    line.append(Object.assign(document.createElement("span"), { textContent: text }), button);
    return line;
  }));
}

function measuring(on) {
  $("before").hidden = on;
  $("measuring").hidden = !on;
  $("calibration-start").hidden = on;
  $("calibration-close").textContent = on ? "Cancel" : "Close";
}

async function open() {
  measuring(false);
  say("");
  $("calibration").showModal();
  const answer = await send("/people", { act: "list" });
  if (answer.error) say(answer.error);
  else show(answer.people);
}

async function begin() {
  const workers = WORKERS.filter((worker) => $(`of-${worker}`).checked && !$(`of-${worker}`).disabled);
  const name = $("person").value.trim();
  $("calibration-start").disabled = true;
  const answer = await send("/people", { act: "begin", name, workers });
  $("calibration-start").disabled = false;
  if (answer.error) {
    say(answer.error);
    return;
  }
  if (!$("calibration").open) return;
  wanted = { name, workers };
  ends = performance.now() + 1000 * answer.seconds;
  say(`Measuring for ${answer.seconds} seconds.`);
  $("instruction").textContent = [
    workers.includes("video") && "Look into the camera with a relaxed face, as if nobody were there.",
    answer.sentence && "Read this aloud in your everyday voice (or any calm sentence in your language):",
  ].filter(Boolean).join(" ");
  $("read").textContent = answer.sentence;
  measuring(true);
  count();
  timer = setInterval(count, 200);
}

async function count() {
  const left = Math.max(Math.ceil((ends - performance.now()) / 1000), 0);
  $("countdown").textContent = `${left}`;
  if (left > 0) return;
  const measured = wanted;
  stop();
  say("Done; saving …");
  $("calibration-close").textContent = "Close";
  // The last rows are made a moment after their time.
  let answer = null;
  for (let attempt = 0; attempt < 10; attempt++) {
    await new Promise((done) => setTimeout(done, 500));
    answer = await send("/people", { act: "keep", ...measured });
    if (!answer.error?.includes("still being measured")) break;
  }
  if (answer.error) say(answer.error);
  else {
    say(`Saved in ${answer.path}, readable by you alone. Use it with: mien run --person ${measured.name}`);
    show(answer.people);
  }
  measuring(false);
}

function stop() {
  clearInterval(timer);
  [timer, wanted] = [null, null];
}

function close() {
  if (wanted) {
    stop();
    measuring(false);
    say("Nothing was stored.");
  } else $("calibration").close();
}

export function wireCalibrating() {
  $("calibrate").addEventListener("click", open);
  $("calibration-start").addEventListener("click", begin);
  $("calibration-close").addEventListener("click", close);
  $("calibration").addEventListener("close", stop);
  $("person").addEventListener("keydown", (event) => { if (event.key === "Enter") begin(); });
}

/** @param state of the page: `choosers`, the workers that can be told to measure. */
export function drawCalibrating(state) {
  for (const worker of WORKERS) $(`of-${worker}`).disabled = !state.choosers.includes(worker);
}
