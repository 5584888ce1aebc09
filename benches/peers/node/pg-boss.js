// pg-boss: `send` with a `singletonKey` (page "Jobs") to a queue of the policy `exclusive` (page "Queues"), in which a
// key can be queued or active once; in a queue of the default policy the key alone refuses nothing.
import pg from 'pg'
import { PgBoss } from 'pg-boss'

import { measure, settings } from './measure.js'

const QUEUE = 'bench'

const asked = settings()
const boss = new PgBoss({ connectionString: asked.url, max: asked.clients })
boss.on('error', console.error)
await boss.start()
await boss.createQueue(QUEUE, { policy: 'exclusive' })
const pool = new pg.Pool({ connectionString: asked.url, max: 1 })

await measure('pg-boss', asked, {
  insert: async (key, payload) => {
    const id = await boss.send(QUEUE, payload, { singletonKey: key })
    if (id === null) throw new Error('the key is taken')
  },
  count: async () => {
    const { rows } = await pool.query('select count(*)::int as jobs from pgboss.job where name = $1', [QUEUE])
    return rows[0].jobs
  },
})
await boss.stop()
await pool.end()
