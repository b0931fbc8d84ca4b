// The page of one session: what is wired at its start, and drawn at each update.

import { drawCalibration, wireCalibration } from "./calibration.js";
import { createChart, drawChart, drawTable } from "./chart.js";
import { drawDevices, drawFaces, wireChoices } from "./choices.js";
import { $, setText } from "./elements.js";
import { connect, requestUpdate } from "./feed.js";
import { drawLabels } from "./labels.js";
import { drawLookback, seek, wireLookback } from "./lookback.js";
import { drawPrediction, drawSound, drawTranscript } from "./prediction.js";
import { drawMirror, isMirrored, showFrame, wirePreview } from "./preview.js";
import { drawBadges, drawEmpty, drawProcesses } from "./processes.js";
import { drawRecord, wireRecording } from "./recording.js";
import { EMOTIONS, MODALITIES, NAMES } from "./rows.js";
import { isLost, state } from "./state.js";

const LOST_MS = 250;

function start() {
  const element = document.querySelector(".m-chart");
  const chart = element && window.getElement?.(element.id.slice(1))?.chart;
  if (!chart) {
    setTimeout(start, 30);
    return;
  }
  document.querySelectorAll("template").forEach(repeat);
  createChart(chart, seek);
  wirePreview();
  wireChoices();
  wireCalibration();
  wireRecording();
  wireHelp();
  wireLookback(() => { draw(); drawTranscript(); drawChart(true); });
  document.addEventListener("click", releaseFocus, { capture: true }); // a dialog that it opens gives the focus back
  document.addEventListener("visibilitychange", requestUpdate);
  connect(show);
  setInterval(() => { if (isLost()) draw(); }, LOST_MS);
}

/** What the page has once for each emotion or modality. */
function repeat(template) {
  const names = template.dataset.each === "emotions" ? EMOTIONS : MODALITIES;
  template.outerHTML = names.map((key) => {
    const name = NAMES[key] ?? key;
    const title = name[0].toUpperCase() + name.slice(1);
    return template.innerHTML.replaceAll("{key}", key).replaceAll("{name}", name).replaceAll("{Name}", title);
  }).join("");
}

/** A button that was clicked, not pressed by key, lets go of the focus: Space goes on to mean "look back". */
function releaseFocus(event) {
  if (event.detail && !document.querySelector("dialog[open]")) event.target.closest("button")?.blur();
}

function wireHelp() {
  const dialog = $("help-dialog");
  $("help").addEventListener("click", () => dialog.showModal());
  $("help-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => localStorage.setItem("mien-explained", "1"));
  if (!localStorage.getItem("mien-explained") && !navigator.webdriver) dialog.showModal();
}

async function show(update, picture) {
  if (update.transcript) drawTranscript();
  if (picture || (update.blank && state.frame)) await showFrame(picture);
  draw();
}

function draw() {
  $("sessions").hidden = state.sessions < 2;
  drawBadges();
  drawPrediction();
  drawSound();
  drawMirror();
  drawFaces(state, isMirrored());
  drawDevices(state);
  drawCalibration(state);
  drawEmpty();
  drawTable();
  drawProcesses();
  drawRecord();
  drawLookback();
  drawLabels();
  setText($("note"), state.note || "");
  drawChart(false);
}

start();
