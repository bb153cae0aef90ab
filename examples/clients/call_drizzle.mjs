// dgen.call from Drizzle.  Needs examples/bank and npm's drizzle-orm and pg; reads PGHOST, PGDATABASE and so on.
import { randomUUID } from 'node:crypto'
import { sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import pg from 'pg'

const pool = new pg.Pool()
const db = drizzle(pool)
const request = JSON.stringify({ deposit: 10 })
const key = randomUUID()            // so that asking again does not pay in twice
for (let attempt = 0; ; attempt++) {
  try {
    const { rows } = await db.execute(
      sql`SELECT dgen.call('bank/alice', ${request}::jsonb, timeout => '2 s', request_key => ${key}) AS balance`)
    console.log(rows[0].balance)
    break
  } catch (e) {                     // Drizzle's own error, with the driver's inside
    if (!['OT001', 'OT002', 'OT015', 'OT020'].includes(e.cause?.code) || attempt === 2) throw e
  }
}
await pool.end()
