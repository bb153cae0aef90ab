-- An order as a state machine, whose mail is sent by a program outside of the
-- database.
--
--     psql -f examples/order/order.sql mydb
--     python3 examples/order/mailer.py ~/Maildir &
--     psql -f examples/order/story.sql mydb
--
--     cart --checkout--> payment --paid--> paid --ship--> shipped
--                           \--- nobody paid in time ---> cancelled
--
-- Module mailer has no handlers in the database: mailer.py takes its messages.
-- An order asks it by a request, in the transaction in which it changes its
-- state, and gets its reply as an event.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA mailer;
SELECT dgen.create_module('mailer', external => true) -> 'created';
CREATE SCHEMA orders;

CREATE FUNCTION orders.init(args jsonb, OUT data jsonb, OUT state_name text)
  LANGUAGE sql AS $$ SELECT '{"items": [], "mails": 0}'::jsonb, 'cart' $$;

CREATE FUNCTION orders.in_cart(kind text, event jsonb, INOUT data jsonb,
                               OUT next_state text, OUT reply jsonb) LANGUAGE plpgsql AS $$
BEGIN
  IF event ? 'add' THEN
    data := jsonb_set(data, '{items}', data -> 'items' || (event -> 'add'));
    reply := to_jsonb(jsonb_array_length(data -> 'items'));
  ELSIF event ? 'checkout' THEN
    IF data -> 'items' = '[]' THEN
      RAISE EXCEPTION 'the cart is empty';
    END IF;
    data := data || jsonb_build_object('to', event -> 'checkout');
    next_state := 'payment';
    PERFORM dgen.state_timeout(coalesce((event ->> 'pay_within')::interval, '15 min'), '"too late"');
    reply := '"please pay"';
  END IF;
END $$;

-- the warehouse may be quicker than the bank: its event waits for the next state
CREATE FUNCTION orders.in_payment(kind text, event jsonb, INOUT data jsonb,
                                  OUT next_state text, OUT reply jsonb, OUT postpone boolean)
  LANGUAGE plpgsql AS $$
BEGIN
  IF kind = 'state_timeout' THEN
    next_state := 'cancelled';
  ELSIF event ? 'paid' THEN
    next_state := 'paid';
    reply := '"thank you"';
  ELSE
    postpone := true;
  END IF;
END $$;

-- counts the mailer's replies
CREATE FUNCTION orders.mailed(kind text, data jsonb) RETURNS jsonb
  LANGUAGE sql AS $$
  SELECT CASE WHEN kind = 'reply' THEN
    jsonb_set(data, '{mails}', to_jsonb((data ->> 'mails')::integer + 1)) ELSE data END
$$;

CREATE FUNCTION orders.in_paid(kind text, event jsonb, INOUT data jsonb, OUT next_state text)
  LANGUAGE plpgsql AS $$
BEGIN
  IF event ? 'ship' THEN
    data := data || jsonb_build_object('tracking', event -> 'ship');
    next_state := 'shipped';
  ELSE
    data := orders.mailed(kind, data);
  END IF;
END $$;

CREATE FUNCTION orders.in_shipped(kind text, event jsonb, INOUT data jsonb)
  LANGUAGE sql AS $$ SELECT orders.mailed(kind, data) $$;

CREATE FUNCTION orders.in_cancelled(kind text, event jsonb, INOUT data jsonb)
  LANGUAGE sql AS $$ SELECT orders.mailed(kind, data) $$;

-- each state from paid on is told to the customer
CREATE FUNCTION orders.enter(old_state text, state_name text, INOUT data jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  IF state_name IN ('paid', 'shipped', 'cancelled') THEN
    PERFORM dgen.send_request('mailer/' || (data ->> 'to'),
      jsonb_build_object('subject', format('Order %s is %s', dgen.key(), state_name),
                         'body', format('Items: %s', data -> 'items')));
  END IF;
END $$;

SELECT dgen.create_module('orders', kind => 'statem') -> 'created';
