# dgen.call from ActiveRecord.  Needs examples/bank; reads PGHOST, PGDATABASE and so on.
require "active_record"
require "securerandom"

# prepared_statements: for PgBouncer, which has no named statements before 1.21
ActiveRecord::Base.establish_connection(adapter: "postgresql", prepared_statements: false)
query = ActiveRecord::Base.sanitize_sql_array(
  ["SELECT dgen.call(?, ?::jsonb, timeout => '2 s', request_key => ?)",
   "bank/alice", { deposit: 10 }.to_json, SecureRandom.uuid])  # so that asking again does not pay in twice
attempt = 0
begin
  puts JSON.parse(ActiveRecord::Base.connection.select_value(query))
rescue ActiveRecord::StatementInvalid => e
  state = e.cause.result.error_field(PG::Result::PG_DIAG_SQLSTATE)
  retry if %w[OT001 OT002 OT015 OT020].include?(state) && (attempt += 1) < 3
  raise
end
