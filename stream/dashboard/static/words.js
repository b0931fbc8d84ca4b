// How numbers are written and coloured, on every page.

export function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

export function sentimentColour(value) {
  const part = Math.min(Math.abs(value) / 1.5, 1);
  return `color-mix(in oklab, var(--${value < 0 ? "negative" : "positive"}) ${Math.round(100 * part)}%, var(--middle))`;
}

/** The bar from the middle of a scale from -3 to 3. */
export function fillScale(style, value) {
  const half = (Math.min(Math.abs(value ?? 0), 3) / 3) * 50;
  style.left = `${(value ?? 0) < 0 ? 50 - half : 50}%`;
  style.width = `${half}%`;
  style.background = value === null ? "" : sentimentColour(value);
}

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Small labels, each with its kind. */
export function showBadges(box, badges) {
  const text = JSON.stringify(badges);
  if (box.dataset.shown === text) return;
  box.dataset.shown = text;
  box.replaceChildren(...badges.map(([kind, label]) => {
    const badge = document.createElement("span");
    badge.className = "m-badge";
    badge.dataset.kind = kind;
    badge.textContent = label;
    return badge;
  }));
}
