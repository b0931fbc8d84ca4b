// Recording from the page: the button, and the dialog that says what is kept.

import { $, setText } from "./elements.js";
import { showHint } from "./labels.js";
import { send } from "./server.js";
import { state } from "./state.js";

const PAUSE_MS = 1000; // a double click is one order
const SHAREABLE = [["video", "video.preview", "picture"], ["audio", "audio.share", "sound"]];
let wasRecording = false;

export function drawRecord() {
  const button = $("record");
  const { record } = state;
  const on = Boolean(record?.path);
  // Once, at the end of a recording: where it is, or why it ended by itself.
  if (wasRecording && !on && record) showHint(record.error || `The recording is in ${record.last}.`);
  wasRecording = on;
  button.hidden = !record;
  setText(button, on ? "Stop recording" : "Record");
  button.setAttribute("aria-pressed", `${on}`);
  button.title = on ? `writing ${record.path}` : "";
}

async function toggleRecording() {
  if (state.record?.path) {
    await send("/record", { on: false });
    return;
  }
  for (const [name, key, what] of SHAREABLE) {
    const shared = Boolean(state.record.shared[name]);
    $(name).disabled = !shared;
    $(name).checked &&= shared;
    setText($(name).parentElement.lastElementChild, shared ? `Record the ${what} too` : `The ${what} cannot be recorded: this session does not share it (${key})`);
  }
  explain(state.record.error);
  $("dialog").showModal();
}

/** Say what will be recorded, and what not; or an error. */
function explain(error) {
  const [kept, left] = [true, false].map((on) => SHAREABLE.filter(([name]) => $(name).checked === on).map(([, , what]) => what));
  const also = kept.map((what) => ` and the ${what}`).join("");
  const without = { 0: "", 1: ` The ${left[0]} is not recorded.`, 2: " Neither picture nor sound is recorded." }[left.length];
  setText($("kept"), error || `Features, predictions, words and the state of the processes${also} are written to a file in ${state.record.folder}, on this machine, until you stop.${without}`);
}

async function startRecording() {
  $("start").disabled = true;
  setTimeout(() => { $("start").disabled = false; }, PAUSE_MS);
  const answer = await send("/record", { on: true, video: $("video").checked, audio: $("audio").checked });
  if (answer.error) explain(answer.error);
  else $("dialog").close();
}

export function wireRecording() {
  $("record").addEventListener("click", toggleRecording);
  for (const [name] of SHAREABLE) $(name).addEventListener("change", () => explain());
  $("cancel").addEventListener("click", () => $("dialog").close());
  $("start").addEventListener("click", startRecording);
}
