-- A ledger.  Each account is a server, each transfer is a server, and the
-- journal is an ordinary table.

CREATE EXTENSION dgen;

CREATE TABLE journal (
    transfer   text NOT NULL,   -- no unique key: were one applied twice, it would show
    debit      text NOT NULL,
    credit     text NOT NULL,
    amount     bigint NOT NULL,
    entered_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE statement (
    account text NOT NULL,
    day     date NOT NULL,
    balance bigint NOT NULL
);

-- account/<name>: one account, in cents
CREATE SCHEMA account;

CREATE FUNCTION account.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$ SELECT '{"balance": 0}'::jsonb $$;

CREATE FUNCTION account.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  balance bigint := state ->> 'balance';
BEGIN
  IF request = '"balance"' THEN
    NULL;
  ELSIF request ? 'deposit' THEN
    balance := balance + (request ->> 'deposit')::bigint;
  ELSIF request ? 'withdraw' THEN
    balance := balance - (request ->> 'withdraw')::bigint;
    IF balance < 0 THEN
      RAISE EXCEPTION 'insufficient funds' USING ERRCODE = 'LG001',
        DETAIL = format('The account holds %s, %s were asked for.',
                        state ->> 'balance', request ->> 'withdraw');
    END IF;
  ELSE
    RAISE EXCEPTION 'an account does not understand %', request;
  END IF;
  state := jsonb_build_object('balance', balance);
  reply := to_jsonb(balance);
END $$;

-- {"statement": "2026-01-31"} writes the balance down
CREATE FUNCTION account.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.statement (account, day, balance)
  VALUES (dgen.key(), (message ->> 'statement')::date, (state ->> 'balance')::bigint);
END $$;

-- transfer/<id>: {"from": account, "to": account, "amount": n}, once
CREATE SCHEMA transfer;

CREATE FUNCTION transfer.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  debit    text := request ->> 'from';
  credit   text := request ->> 'to';
  withdraw jsonb := jsonb_build_object('withdraw', request -> 'amount');
  deposit  jsonb := jsonb_build_object('deposit', request -> 'amount');
BEGIN
  -- Inside a handler a call runs in the handler's own transaction.  All take
  -- the two accounts in one order, so that transfers back and forth queue up
  -- instead of deadlocking.
  IF debit < credit THEN
    PERFORM dgen.call('account/' || debit, withdraw);
    PERFORM dgen.call('account/' || credit, deposit);
  ELSE
    PERFORM dgen.call('account/' || credit, deposit);
    PERFORM dgen.call('account/' || debit, withdraw);
  END IF;
  INSERT INTO public.journal (transfer, debit, credit, amount)
  VALUES (dgen.key(), debit, credit, (request ->> 'amount')::bigint);
  state := request;
  reply := jsonb_build_object('done', dgen.key());
END $$;

SELECT dgen.create_module('account');
SELECT dgen.create_module('transfer');
