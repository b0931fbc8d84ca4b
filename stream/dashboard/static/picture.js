// The picture and the mesh of one and the same frame, drawn together.

let edges = new Uint16Array(0);

/** The mesh's lines, each once: pairs of landmark numbers. */
export function setEdges(pairs) {
  const seen = new Set();
  const unique = [];
  for (let i = 0; i + 1 < pairs.length; i += 2) {
    const low = Math.min(pairs[i], pairs[i + 1]);
    const high = Math.max(pairs[i], pairs[i + 1]);
    if (!seen.has(low * 65536 + high)) {
      seen.add(low * 65536 + high);
      unique.push(low, high);
    }
  }
  edges = Uint16Array.from(unique);
}

/**
 * Draws a frame {width, height, jpeg: Uint8Array, points: Float32Array, faces} so that it fits; black around it. Of several
 * faces, each has a frame.
 */
export async function drawFrame(canvas, frame) {
  const image = frame.jpeg.length ? await createImageBitmap(new Blob([frame.jpeg], { type: "image/jpeg" })) : null;
  const pen = fitted(canvas);
  const scale = Math.min(canvas.width / frame.width, canvas.height / frame.height);
  const width = frame.width * scale;
  const height = frame.height * scale;
  const left = (canvas.width - width) / 2;
  const top = (canvas.height - height) / 2;
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (image) {
    pen.drawImage(image, left, top, width, height);
    image.close();
  }
  const points = frame.points;
  if (points.length) {
    pen.beginPath();
    for (let i = 0; i + 1 < edges.length; i += 2) {
      const a = 2 * edges[i];
      const b = 2 * edges[i + 1];
      if (b + 1 >= points.length || a + 1 >= points.length) continue;
      pen.moveTo(left + points[a] * width, top + points[a + 1] * height);
      pen.lineTo(left + points[b] * width, top + points[b + 1] * height);
    }
    pen.lineWidth = Math.max(0.8, canvas.width / 620);
    pen.strokeStyle = image ? "rgba(190, 248, 236, 0.6)" : "rgba(120, 205, 192, 0.75)";
    pen.stroke();
  }
  if (frame.faces?.length > 1) {
    pen.lineWidth = Math.max(1, canvas.width / 480);
    pen.strokeStyle = "rgba(255, 255, 255, 0.75)";
    for (const [l, t, r, b] of frame.faces) pen.strokeRect(left + l * width, top + t * height, (r - l) * width, (b - t) * height);
  }
  return { left, top, width, height };
}

/** Nothing to show: black. */
export function clearFrame(canvas) {
  const pen = fitted(canvas);
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function fitted(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return canvas.getContext("2d", { alpha: false });
}
