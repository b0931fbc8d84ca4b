// Finding, making and filling elements; what does not change is left alone.

import { formatSigned, sentimentColour } from "./format.js";

export const $ = (name) => document.querySelector(`.js-${name}`);
export const $$ = (name) => document.querySelectorAll(`.js-${name}`);

export function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function makeButton(text, onClick, className = "m-button") {
  const button = make("button", { type: "button", className, textContent: text });
  button.addEventListener("click", onClick);
  return button;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replace the children of `box` if `value`, which they show, has changed since the last call. */
export function refill(box, value, makeChildren) {
  const text = JSON.stringify(value);
  if (box.dataset.shown === text) return;
  box.dataset.shown = text;
  box.replaceChildren(...makeChildren());
}

/** Small labels, each with its kind. */
export function showBadges(box, badges) {
  refill(box, badges, () => badges.map(([kind, label]) => {
    const badge = make("span", { className: "m-badge", textContent: label });
    badge.dataset.kind = kind;
    return badge;
  }));
}

/** A sentiment's number, and its bar from the middle of a scale from -3 to 3. */
export function showSentiment(number, bar, value) {
  setText(number, formatSigned(value));
  const colour = value === null ? "" : sentimentColour(value);
  const half = (Math.min(Math.abs(value ?? 0), 3) / 3) * 50;
  number.style.color = colour;
  Object.assign(bar.style, { left: `${(value ?? 0) < 0 ? 50 - half : 50}%`, width: `${half}%`, background: colour });
}
