// Checks what a mien publishes: `node checker.mjs SCHEMA ENDPOINT COUNT`, and prints what it saw as JSON.
//
// Written from stream/protocol.md (sections 1, 2 and 4) and the JSON Schema alone.

import { readFileSync } from "node:fs"
import Ajv from "ajv/dist/2020.js"
import { Subscriber } from "zeromq"

const [schemaPath, endpoint, count] = process.argv.slice(2)
const schema = JSON.parse(readFileSync(schemaPath, "utf-8"))
const ajv = new Ajv({ strict: false, allErrors: false })
ajv.addSchema(schema, "mien")
const validators = Object.fromEntries(
  ["Prediction", "Status", "About"].map((name) => [name.toLowerCase(), ajv.getSchema(`mien#/$defs/${name}`)]),
)
const name = "[A-Za-z0-9_.-]{1,64}"
const topics = new RegExp(`^(prediction|status|about)/(${name})/(${name})?$`)

const socket = new Subscriber({ receiveHighWaterMark: 0 })
socket.connect(endpoint)
for (const prefix of ["prediction/", "status/", "about/"]) socket.subscribe(prefix)

const newest = new Map()
const seen = { messages: 0, valid: 0, prediction: 0, status: 0, about: 0, lost: 0, first: null }
const invalid = (why) => (seen.first ??= why)

for await (const frames of socket) {
  seen.messages += 1
  const [topic, header, payload] = frames
  const parts = frames.length === 3 && topics.exec(topic.toString("ascii"))
  if (!parts || header.length !== 1 || header[0] !== 1) {
    invalid(`not a message: ${topic}`)
  } else {
    const [, kind, session, part = ""] = parts
    const message = JSON.parse(payload.toString("utf-8"))
    seen[kind] += 1
    if (!validators[kind](message)) invalid(`${topic}: ${ajv.errorsText(validators[kind].errors)}`)
    else if (message.session !== session || (kind === "status" && message.worker !== part)) invalid(`${topic}: names`)
    else seen.valid += 1
    if (kind === "prediction") {
      const last = newest.get(session)
      if (last && last.run === message.run && message.seq > last.seq) seen.lost += message.seq - last.seq - 1
      newest.set(session, message)
    }
  }
  if (seen.messages >= Number(count)) break
}
console.log(JSON.stringify(seen))
socket.close()
