// The load that the peers of this folder are put under: producers that each await one insert after the other. Owns the
// command line, the clock and the printed line; never knows what an insert is.
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { parseArgs } from 'node:util'

const WARM_UP_MS = 1000
// With the key and the names of the members, about 200 bytes of JSON.
const TEXT = 'The words of a customer. '.repeat(6)

// Standard output is for one line, and libraries like to say there what they do.
console.log = console.error

export function settings() {
  const text = { type: 'string' }
  const options = { 'database-url': text, clients: text, seconds: text, life: { type: 'boolean' } }
  const { values } = parseArgs({ options })
  const [clients, seconds] = [Number(values.clients), Number(values.seconds)]
  if (!values['database-url'] || !(Number.isInteger(clients) && clients > 0) || !(seconds > 0)) {
    throw new Error('--database-url URL, --clients N and --seconds S are needed')
  }
  return { url: values['database-url'], clients, seconds, life: values.life }
}

// `insert(key, payload)` resolves once the job is committed; `count()` tells how many the peer's own table holds.
// Prints the measured line, and throws if the peer lost, doubled or invented a job.
export async function measure(peer, { clients, seconds }, { insert, count }) {
  await aKeyTwiceIsOneJob(insert, count)
  const before = await count()
  const { acknowledged, latencies } = await load(clients, seconds, insert)
  const stored = (await count()) - before
  if (stored !== acknowledged) throw new Error(`${acknowledged} inserts were acknowledged, ${stored} jobs are stored`)

  const sorted = Float64Array.from(latencies).sort()
  const microseconds = (share) => Math.round(sorted[Math.ceil(share * sorted.length) - 1] * 1000)
  print(peer, { jobs: sorted.length, seconds, p50_us: microseconds(0.5), p99_us: microseconds(0.99) })
}

// The same for whole lives: `live(key, payload)` submits a job and resolves once a job has ended, this one or another;
// `ended()` waits for what is still under way and tells how many jobs have ended, or throws if one has not.
export async function measureLife(peer, { clients, seconds }, { live, ended }) {
  const { acknowledged, latencies } = await load(clients, seconds, live)
  const jobs = await ended()
  if (jobs !== acknowledged) throw new Error(`${acknowledged} jobs were submitted, ${jobs} have ended`)
  print(peer, { jobs: latencies.length, seconds })
}

function print(peer, figures) {
  const manifest = new URL(`node_modules/${peer}/package.json`, import.meta.url)
  const { version } = JSON.parse(readFileSync(manifest, 'utf8'))
  process.stdout.write(`${JSON.stringify({ peer, version, ...figures })}\n`)
}

// Else the keys would be ballast, and the figures those of a plain insert.
async function aKeyTwiceIsOneJob(insert, count) {
  const [key, before] = [randomUUID(), await count()]
  await insert(key, payload(key))
  await insert(key, payload(key)).catch(() => {})
  const stored = (await count()) - before
  if (stored !== 1) throw new Error(`the same key twice made ${stored} jobs`)
}

async function load(clients, seconds, insert) {
  const begin = performance.now() + WARM_UP_MS
  const end = begin + seconds * 1000
  const latencies = []
  let acknowledged = 0
  const produce = async () => {
    while (performance.now() < end) {
      const key = randomUUID()
      const sent = performance.now()
      await insert(key, payload(key))
      const answered = performance.now()
      acknowledged += 1
      if (begin <= answered && answered < end) latencies.push(answered - sent)
    }
  }
  await Promise.all(Array.from({ length: clients }, produce))
  if (latencies.length === 0) throw new Error('no insert was acknowledged in time')
  return { acknowledged, latencies }
}

function payload(key) {
  return { order: key, text: TEXT }
}
