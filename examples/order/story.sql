-- What happens to two orders; order.sql has been run, and mailer.py runs.

SELECT dgen.call('orders/1', '{"add": "a book"}');                              --> 1
SELECT dgen.call('orders/1', '{"add": "a lamp"}');                              --> 2
SELECT dgen.call('orders/1', '{"checkout": "ada@example.org"}');                --> "please pay"
SELECT state_name FROM dgen.servers WHERE server = 'orders/1';                  --> payment

-- early: it is kept, and handled once the order is paid
SELECT dgen.cast('orders/1', '{"ship": "parcel 4711"}') > 0;                    --> t
SELECT dgen.wait_idle('orders/1');                                              --> t
SELECT status, message FROM dgen.messages WHERE server = 'orders/1' AND kind = 'cast';
                                                                                --> postponed | {"ship": "parcel 4711"}
SELECT state_name FROM dgen.servers WHERE server = 'orders/1';                  --> payment
SELECT dgen.call('orders/1', '{"paid": 30}');                                   --> "thank you"

SELECT dgen.call('orders/2', '{"checkout": "bob@example.org"}');                --! P0001
SELECT dgen.call('orders/2', '{"add": "a chair"}');                             --> 1
SELECT dgen.call('orders/2', '{"checkout": "bob@example.org", "pay_within": "100 ms"}');  --> "please pay"

-- the mails are sent: two to ada, and one to bob, who did not pay
DO $$
BEGIN
  WHILE (dgen.state('orders/1') ->> 'mails')::integer < 2
     OR (dgen.state('orders/2') ->> 'mails')::integer < 1 LOOP
    PERFORM pg_sleep(0.05);
  END LOOP;
END $$;
SELECT server, state_name FROM dgen.servers WHERE module = 'orders' ORDER BY server;
                                                                                --> orders/1 | shipped
                                                                                --> orders/2 | cancelled
SELECT dgen.state('mailer/ada@example.org');                                    --> {"sent": 2}
