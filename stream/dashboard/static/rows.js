// A row of the history: one moment's prediction as numbers. `row_of` in history.py writes the columns.

export const EMOTIONS = ["neutral", "happy", "sad", "angry", "fear", "disgust", "surprise"];
export const MODALITIES = ["vision", "audio", "text"];
export const NAMES = { vision: "face", audio: "voice", text: "words" };
export const T = 0, RAW = 1, SMOOTH = 2, CONFIDENCE = 3, EMOTION = 4, GATE = 11, AGE = 14;
export const HOLE_MS = 600; // rows come ten times a second; from here on something is missing

/** The part of `rows` whose times lie in [from, to]; rows are in order of time. */
export function within(rows, from, to) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rows[middle][T] < from) low = middle + 1;
    else high = middle;
  }
  let end = rows.length;
  while (end > low && rows[end - 1][T] > to) end--;
  return rows.slice(low, end);
}

/** The row nearest to a time; null if there is none. */
export function nearestRow(rows, t) {
  return within(rows, t - HOLE_MS, t + HOLE_MS)
    .reduce((best, row) => (best && Math.abs(best[T] - t) < Math.abs(row[T] - t) ? best : row), null);
}

/** The probabilities of the emotions, and the index of the highest; null where nothing was predicted. */
export function emotionsOf(row) {
  if (!row || row[EMOTION] === null) return null;
  const shares = row.slice(EMOTION, EMOTION + EMOTIONS.length);
  return { shares, top: shares.indexOf(Math.max(...shares)) };
}

/** The modalities' shares in the decision; null where nothing was predicted. */
export function gatesOf(row) {
  return row && row[GATE] !== null ? row.slice(GATE, GATE + MODALITIES.length) : null;
}
