# What ActiveRecord makes of dgen.call, as a line of JSON for test_clients.py
require "active_record"

TOLD = {}
def connect(prepared)
  ActiveRecord::Base.establish_connection(adapter: "postgresql", prepared_statements: prepared, pool: 1)
  ActiveRecord::Base.connection
end

def sql(key, request)
  ActiveRecord::Base.sanitize_sql_array(["SELECT dgen.call(?, ?::jsonb) AS reply", "lab/#{key}", request.to_json])
end

def call(key, request)
  ActiveRecord::Base.connection.select_value(sql(key, request))
end

def failure
  yield
  "none"
rescue ActiveRecord::StatementInvalid => e
  "#{e.class.name} #{e.cause.result.error_field(PG::Result::PG_DIAG_SQLSTATE)}"
end

db = connect(false)
TOLD[:reply] = call("ar", { echo: { a: [1, "x", nil] } })
TOLD[:cast] = db.select_all(sql("ar", { echo: { a: [1, "x", nil] } })).cast_values.first
TOLD[:unique] = failure { call("ar", { raise: "23505" }) }
TOLD[:pid] = db.select_value("SELECT pg_backend_pid()")
TOLD[:interrupted] = failure { call("ar", { raise: "57P01" }) }
TOLD[:serialization] = failure { call("ar", { raise: "40001" }) }
TOLD[:lost] = failure { call("ar", { die: true }) }
TOLD[:active] = db.active?
TOLD[:pid_after] = db.select_value("SELECT pg_backend_pid()")
12.times { TOLD[:count] = call("ar", { count: 1 }) }

ActiveRecord::Base.transaction do
  db.execute("INSERT INTO lab.row VALUES (1)")
  TOLD[:in_transaction] = call("ar", { count: 1 })
  raise ActiveRecord::Rollback
end
TOLD[:timeout] = failure do
  ActiveRecord::Base.transaction do
    db.execute("SET LOCAL statement_timeout = '300 ms'")
    call("held", {})
  end
end
ActiveRecord::Base.transaction do
  TOLD[:savepoint] = [failure { ActiveRecord::Base.transaction(requires_new: true) { call("ar", { raise: "23505" }) } },
                      call("ar", { count: 1 })]
end

db = connect(true)
binds = ["lab/named", '{"count": 1}'].map { |v| ActiveRecord::Relation::QueryAttribute.new("", v, ActiveRecord::Type::Text.new) }
TOLD[:named] = "none"
6.times do
  next unless TOLD[:named] == "none"
  TOLD[:named] = failure { db.exec_query("SELECT dgen.call($1, $2::jsonb)", "call", binds, prepare: true) }
end
puts TOLD.to_json
