-- A bank: accounts as servers, and transfers over two of them in one
-- transaction.
--
--     psql -f examples/bank/bank.sql mydb
--
-- A transfer is a call to the account that pays.  Its handler calls the other
-- account, and a call in a handler is an invoke: both accounts change in one
-- transaction, or neither does.  Transfers that cross each other are retried
-- by the workers.  `-->` is what a statement returns, `--!` the SQLSTATE that
-- it raises.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA bank;

-- what the owner of the accounts may be asked for
CREATE TABLE bank.entry (
  account text NOT NULL,
  amount bigint NOT NULL,
  balance bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION bank.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '{"balance": 0}'::jsonb $$;

-- whatever a handler makes of it, an account is never overdrawn
CREATE FUNCTION bank.validate(state jsonb) RETURNS boolean
  LANGUAGE sql AS $$ SELECT (state ->> 'balance')::bigint >= 0 $$;

CREATE FUNCTION bank.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  amount bigint := coalesce((request ->> 'deposit')::bigint, -(request ->> 'withdraw')::bigint,
                            -(request ->> 'transfer')::bigint);
  balance bigint := (state ->> 'balance')::bigint + amount;
BEGIN
  IF balance < 0 THEN
    RAISE EXCEPTION 'insufficient funds'
      USING DETAIL = format('The balance of %s is %s.', dgen.key(), state ->> 'balance');
  END IF;
  IF request ? 'transfer' THEN
    PERFORM dgen.call('bank/' || (request ->> 'to'), jsonb_build_object('deposit', -amount));
  END IF;
  INSERT INTO bank.entry (account, amount, balance) VALUES (dgen.key(), amount, balance);
  state := jsonb_build_object('balance', balance);
  reply := to_jsonb(balance);
END $$;

-- the balance, without waiting for anybody
CREATE FUNCTION bank.handle_query(query jsonb, state jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT state -> 'balance' $$;

SELECT dgen.create_module('bank');

SELECT dgen.call('bank/alice', '{"deposit": 100}');                    --> 100
SELECT dgen.call('bank/alice', '{"transfer": 30, "to": "bob"}');       --> 70
SELECT dgen.query('bank/bob', '"balance"');                            --> 30

-- an error undoes all of it, and is the caller's as it was raised
SELECT dgen.call('bank/bob', '{"transfer": 31, "to": "alice"}');       --! P0001
SELECT dgen.call('bank/bob', '{"transfer": 1, "to": "bob"}');          --! OT009
SELECT sum(dgen.query('bank/' || k, '""')::bigint) FROM unnest(ARRAY['alice', 'bob']) k;  --> 100

-- a client that does not know whether its call happened repeats it under its key
SELECT dgen.call('bank/alice', '{"withdraw": 5}', request_key => 'atm-17');  --> 65
SELECT dgen.call('bank/alice', '{"withdraw": 5}', request_key => 'atm-17');  --> 65

-- accounts and tables of one's own in one transaction
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT dgen.invoke('bank/alice', '{"withdraw": 65}');                  --> 0
SELECT dgen.invoke('bank/bob', '{"deposit": 65}');                     --> 95
ROLLBACK;
SELECT dgen.query('bank/alice', '""'), dgen.query('bank/bob', '""');   --> 65 | 30
SELECT account, sum(amount), count(*) FROM bank.entry GROUP BY account ORDER BY account;
                                                                       --> alice | 65 | 3
                                                                       --> bob | 30 | 1
