-- A rate limiter: a token bucket for each key, as many as there are keys.
--
--     psql -f examples/rate_limiter/rate_limiter.sql mydb
--
-- Buckets come to life when somebody asks; an idle one costs a row.  The rate
-- is the same for all here; it could as well be a table's, or the caller's.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA limiter;

CREATE TABLE limiter.rate (capacity numeric NOT NULL, per_second numeric NOT NULL);
INSERT INTO limiter.rate VALUES (5, 0.001);

CREATE FUNCTION limiter.init(args jsonb) RETURNS jsonb
  LANGUAGE sql AS $$
  SELECT jsonb_build_object('tokens', capacity, 'at', extract(epoch FROM dgen.now()))
  FROM limiter.rate
$$;

-- {"take": n} -> {"allowed": true, "left": m} or {"allowed": false, "retry_after": seconds}
CREATE FUNCTION limiter.handle_call(request jsonb, INOUT state jsonb, OUT reply jsonb)
  LANGUAGE plpgsql AS $$
DECLARE
  r limiter.rate;
  now numeric := extract(epoch FROM dgen.now());
  take numeric := coalesce((request ->> 'take')::numeric, 1);
  tokens numeric;
BEGIN
  SELECT * INTO STRICT r FROM limiter.rate;
  tokens := least(r.capacity, (state ->> 'tokens')::numeric
                  + greatest(now - (state ->> 'at')::numeric, 0) * r.per_second);
  IF tokens >= take THEN
    tokens := tokens - take;
    reply := jsonb_build_object('allowed', true, 'left', floor(tokens));
  ELSE
    reply := jsonb_build_object('allowed', false,
                                'retry_after', ceil((take - tokens) / r.per_second));
  END IF;
  state := jsonb_build_object('tokens', tokens, 'at', now);
END $$;

SELECT dgen.create_module('limiter');

SELECT dgen.call('limiter/203.0.113.7', '{"take": 3}');   --> {"left": 2, "allowed": true}
SELECT dgen.call('limiter/203.0.113.7', '{"take": 2}');   --> {"left": 0, "allowed": true}
SELECT dgen.call('limiter/203.0.113.7', '{"take": 1}') -> 'allowed';   --> false
SELECT dgen.call('limiter/203.0.113.8', '{"take": 1}');   --> {"left": 4, "allowed": true}

-- as many at once as there is room for, whoever asks
SELECT count(*) FILTER (WHERE dgen.call('limiter/api', '{}') -> 'allowed' = 'true')
FROM generate_series(1, 20);                              --> 5
