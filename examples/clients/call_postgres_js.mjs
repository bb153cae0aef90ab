// dgen.call from postgres.js.  Needs examples/bank and npm's postgres; reads PGHOST, PGDATABASE and so on.
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'

const sql = postgres({ prepare: false })    // for PgBouncer, which has no named statements before 1.21
const key = randomUUID()                    // so that asking again does not pay in twice
for (let attempt = 0; ; attempt++) {
  try {
    const [row] = await sql`
      SELECT dgen.call('bank/alice', ${sql.json({ deposit: 10 })}, timeout => '2 s', request_key => ${key}) AS balance`
    console.log(row.balance)
    break
  } catch (e) {
    if (!['OT001', 'OT002', 'OT015', 'OT020'].includes(e.code) || attempt === 2) throw e
  }
}
await sql.end()
