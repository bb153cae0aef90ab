from django.db import migrations, models

STOCK = """
CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA stock;
CREATE FUNCTION stock.init(args jsonb) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{"left": 5}'::jsonb $$;
CREATE FUNCTION stock.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
LANGUAGE plpgsql AS $$
DECLARE
  n int := (state ->> 'left')::int - (request ->> 'take')::int;
BEGIN
  IF request ? 'raise' THEN
    RAISE EXCEPTION 'as was asked for' USING ERRCODE = request ->> 'raise';
  END IF;
  IF n < 0 THEN
    RAISE EXCEPTION 'sold out' USING ERRCODE = 'check_violation';
  END IF;
  state := jsonb_build_object('left', n);
  reply := state;
END $$;
CREATE FUNCTION stock.handle_cast(message jsonb, INOUT state jsonb)
LANGUAGE sql AS $$ SELECT jsonb_build_object('left', (state ->> 'left')::int + (message ->> 'add')::int) $$;
SELECT dgen.create_module('stock', invoke_isolation => 'any');
"""


class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Order", [
            ("id", models.BigAutoField(primary_key=True)),
            ("item", models.TextField(unique=True)),
        ]),
        migrations.RunSQL(STOCK, "SELECT dgen.drop_module('stock', cascade => true); DROP SCHEMA stock CASCADE"),
    ]
