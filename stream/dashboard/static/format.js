// How values are written and coloured.

export const MISSING = "–";

export function formatSigned(value) {
  return value === null ? MISSING : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

export function formatPercent(value) {
  return value === null ? MISSING : `${Math.round(100 * value)} %`;
}

export function formatSeconds(ms, digits = 1) {
  return (ms / 1000).toFixed(digits);
}

/** A latency in ms, without its unit. */
export function formatLatency(ms) {
  return ms < 10 ? ms.toFixed(1) : `${Math.round(ms)}`;
}

export function sentimentColour(value) {
  const part = Math.min(Math.abs(value) / 1.5, 1);
  return `color-mix(in oklab, var(--${value < 0 ? "negative" : "positive"}) ${Math.round(100 * part)}%, var(--middle))`;
}

/** A sentiment in words. */
export function describeSentiment(value) {
  if (value === null) return "no prediction";
  const size = Math.abs(value);
  if (size < 0.25) return "neutral";
  return `${size < 1 ? "slightly " : size > 2 ? "very " : ""}${value > 0 ? "positive" : "negative"}`;
}
