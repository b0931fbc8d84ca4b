// Prints the predictions of a running mien: `npm install && node subscriber.mjs [endpoint] [count]`.
//
// Written from stream/protocol.md alone (sections 1, 2 and 4). Start it before or after `mien run`; ZeroMQ reconnects
// by itself.

import { Subscriber } from "zeromq"

const VERSION = 1
const [endpoint = "tcp://127.0.0.1:5560", count = "Infinity"] = process.argv.slice(2)

const percent = (share) => `${Math.round(share * 100)}%`

function describe(prediction) {
  if (prediction.abstains) return `no prediction: ${prediction.abstains}`
  const [emotion] = Object.entries(prediction.emotions).reduce((best, next) => (next[1] > best[1] ? next : best))
  const shares = Object.entries(prediction.gates).map(([name, share]) => `${name} ${percent(share)}`)
  const sign = prediction.sentiment < 0 ? "" : "+"
  return `${sign}${prediction.sentiment.toFixed(2)} ${emotion} ${percent(prediction.confidence)}  (${shares.join(" ")})`
}

const socket = new Subscriber({ receiveHighWaterMark: 256 })
socket.connect(endpoint)
socket.subscribe("prediction/")
process.once("SIGINT", () => socket.close())

let left = Number(count)
const newest = new Map() // session -> "run/seq": on subscription the last prediction may come twice

for await (const frames of socket) {
  if (frames.length !== 3 || frames[1][0] !== VERSION) {
    console.error(`refused a message of ${frames.length} frames, version ${frames[1]?.[0]}`)
    continue
  }
  const prediction = JSON.parse(frames[2].toString("utf-8"))
  const number = `${prediction.run}/${prediction.seq}`
  if (newest.get(prediction.session) === number) continue
  newest.set(prediction.session, number)
  console.log(`#${prediction.seq} ${describe(prediction)}  ${prediction.transcript.committed}`)
  if (--left <= 0) break
}
socket.close()
