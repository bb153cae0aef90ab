"""The first screen of the README through a driver, with a kill -9 of
everything in the middle."""

FIRST_SCREEN = [
    "CREATE EXTENSION dgen",
    "CREATE SCHEMA counter",
    """CREATE FUNCTION counter.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '0'::jsonb $$""",
    """CREATE FUNCTION counter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  state := to_jsonb(state::int + 1);
  reply := state;
END $$""",
    "SELECT dgen.create_module('counter')",
]

INCREMENT = "SELECT dgen.call('counter/home', '\"increment\"')"


def test_counter_survives_kill9(cluster):
    with cluster.connect() as conn:
        for statement in FIRST_SCREEN:
            conn.execute(statement)
        assert conn.execute(INCREMENT).fetchone() == (1,)

    cluster.kill9()
    cluster.start()

    with cluster.connect() as conn:
        assert conn.execute(INCREMENT).fetchone() == (2,)
        assert conn.execute("SELECT dgen.state('counter/home')").fetchone() == (2,)
        reply = conn.execute("SELECT dgen.call(%s, %s::jsonb)",
                             ("counter/away", '"increment"')).fetchone()
        assert reply == (1,)
