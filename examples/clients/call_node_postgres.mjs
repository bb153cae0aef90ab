// dgen.call from node-postgres.  Needs examples/bank and npm's pg; reads PGHOST, PGDATABASE and so on.
import { randomUUID } from 'node:crypto'
import pg from 'pg'

const pool = new pg.Pool()
const key = randomUUID()            // so that asking again does not pay in twice
for (let attempt = 0; ; attempt++) {
  try {
    const { rows } = await pool.query(
      `SELECT dgen.call($1, $2::jsonb, timeout => '2 s', request_key => $3) AS balance`,
      ['bank/alice', JSON.stringify({ deposit: 10 }), key])
    console.log(rows[0].balance)
    break
  } catch (e) {
    if (!['OT001', 'OT002', 'OT015', 'OT020'].includes(e.code) || attempt === 2) throw e
  }
}
await pool.end()
