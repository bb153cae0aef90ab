-- A job queue: retries, snooze, unique jobs, schedules, priorities, and a limit
-- to how many of a queue run at once.
--
--     psql -f examples/jobs/jobs.sql mydb
--
-- A job is a cast to a server of an ephemeral module: such a server keeps no
-- state, so nothing but the message is stored.  Jobs for different servers run
-- at the same time, jobs for one server one after the other: a queue is given
-- as many servers as may run at once.

CREATE EXTENSION IF NOT EXISTS dgen;
CREATE SCHEMA jobs;

CREATE TABLE jobs.done (job jsonb NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE jobs.given_up (job jsonb NOT NULL, attempts integer NOT NULL, error jsonb NOT NULL);
CREATE TABLE jobs.maintenance (on_now boolean NOT NULL);
INSERT INTO jobs.maintenance VALUES (false);

CREATE FUNCTION jobs.handle_cast(message jsonb, INOUT state jsonb)
  LANGUAGE plpgsql AS $$
BEGIN
  CASE message ->> 'do'
    WHEN 'report' THEN
      -- snooze: not now, and that is no failure
      IF (SELECT on_now FROM jobs.maintenance) THEN
        PERFORM dgen.retry_after('1 s');
        RETURN;
      END IF;
    WHEN 'import' THEN
      -- what cannot succeed is given up at once
      PERFORM dgen.reject('no such file');
      RETURN;
    WHEN 'mail' THEN
      -- an error is tried again after a while
      IF message ->> 'to' IS NULL THEN
        RAISE EXCEPTION 'mail has no address';
      END IF;
  END CASE;
  INSERT INTO jobs.done (job) VALUES (message);
END $$;

CREATE FUNCTION jobs.handle_dead_letter(message jsonb, attempts integer, error jsonb) RETURNS void
  LANGUAGE sql AS $$ INSERT INTO jobs.given_up VALUES (message, attempts, error) $$;

SELECT dgen.create_module('jobs', ephemeral => true, max_attempts => 3,
                          backoff_initial => '10 ms', backoff_factor => 2);

-- enqueue: joins the transaction; at most so many of a queue run at once
CREATE FUNCTION jobs.enqueue(queue text, job jsonb, at_once integer DEFAULT 2,
                             unique_key text DEFAULT NULL, delay interval DEFAULT NULL,
                             priority integer DEFAULT 0) RETURNS bigint
  LANGUAGE sql AS $$
  SELECT dgen.cast(
    format('jobs/%s/%s', queue,
           CASE WHEN unique_key IS NULL THEN floor(random() * at_once)::integer
                ELSE abs(hashtext(unique_key)) % at_once END),
    job, delay => delay, priority => priority, dedup_key => unique_key)
$$;

SELECT count(jobs.enqueue('mail', jsonb_build_object('do', 'mail', 'to', i))) FROM generate_series(1, 20) i;  --> 20
SELECT dgen.wait_idle(module => 'jobs');             --> t
SELECT count(*) FROM jobs.done;                      --> 20

-- unique: the second has the id of the first
SELECT jobs.enqueue('mail', '{"do": "mail", "to": "once"}', unique_key => 'welcome:7')
     = jobs.enqueue('mail', '{"do": "mail", "to": "once"}', unique_key => 'welcome:7');  --> t
SELECT dgen.wait_idle(module => 'jobs');             --> t
SELECT count(*) FROM jobs.done WHERE job ->> 'to' = 'once';  --> 1

-- retried, and then given up
SELECT jobs.enqueue('mail', '{"do": "mail"}') > 0;     --> t
SELECT jobs.enqueue('import', '{"do": "import"}') > 0; --> t
SELECT dgen.wait_idle(module => 'jobs');             --> t
SELECT job, attempts, error ->> 'message' FROM jobs.given_up ORDER BY attempts;
                                                     --> {"do": "import"} | 1 | message was rejected: no such file
                                                     --> {"do": "mail"} | 3 | mail has no address

-- mended, and done after all
SELECT dgen.requeue(id, '{"do": "mail", "to": "late"}') FROM dgen.dead_letters WHERE attempts = 3;  --> t
SELECT dgen.wait_idle(module => 'jobs');             --> t
SELECT count(*) FROM jobs.done WHERE job ->> 'to' = 'late';  --> 1

-- snoozed while there is maintenance
UPDATE jobs.maintenance SET on_now = true;
SELECT jobs.enqueue('reports', '{"do": "report"}') > 0;  --> t
SELECT dgen.wait_idle(module => 'jobs', timeout => '300 ms');  --> f
UPDATE jobs.maintenance SET on_now = false;
SELECT dgen.wait_idle(module => 'jobs');             --> t
SELECT count(*) FROM jobs.done WHERE job ->> 'do' = 'report';  --> 1

-- later, and called off
SELECT dgen.cancel(jobs.enqueue('mail', '{"do": "mail", "to": "tomorrow"}', delay => '1 day'));  --> t

-- what waits, for whom to look
SELECT split_part(server, '/', 2) AS queue, status, count(*) FROM dgen.messages
WHERE server LIKE 'jobs/%' GROUP BY 1, 2;
