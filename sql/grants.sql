
/* ------------------------------------------------------------------- grants
 *
 * Functions are PUBLIC's, since each checks rights itself; tables and
 * sequences are nobody's, since the library writes them without any.
 */

GRANT USAGE ON SCHEMA dgen TO PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA dgen FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA dgen FROM PUBLIC;
GRANT SELECT ON dgen.servers, dgen.messages, dgen.modules, dgen.dead_letters, dgen.workers, dgen.pools,
	dgen.progress, dgen.progress_migrate, dgen.names, dgen.groups, dgen.monitors, dgen.traces, dgen.trace_log,
	dgen.timers, dgen.supervisors, dgen.children, dgen.stat_module, dgen.stat_server, dgen.stat_worker,
	dgen.stat_activity, dgen.stat_queue, dgen.stat_timers, dgen.stat_database, dgen.audit_log TO PUBLIC;

/* What a dump carries.  Not dgen.installation: a restored copy must know that it is one. */
SELECT pg_extension_config_dump('dgen.adoption', '');
SELECT pg_extension_config_dump('dgen.module', '');
SELECT pg_extension_config_dump('dgen.server', '');
SELECT pg_extension_config_dump('dgen.message', '');
SELECT pg_extension_config_dump('dgen.delayed', '');
SELECT pg_extension_config_dump('dgen.attempt', '');
SELECT pg_extension_config_dump('dgen.letter', '');
SELECT pg_extension_config_dump('dgen.reply', '');
SELECT pg_extension_config_dump('dgen.dedup', '');
SELECT pg_extension_config_dump('dgen.patch', '');
SELECT pg_extension_config_dump('dgen.history', '');
SELECT pg_extension_config_dump('dgen.tombstone', '');
SELECT pg_extension_config_dump('dgen.timer', '');
SELECT pg_extension_config_dump('dgen.postponed', '');
SELECT pg_extension_config_dump('dgen.monitor', '');
SELECT pg_extension_config_dump('dgen.name', '');
SELECT pg_extension_config_dump('dgen.member', '');
SELECT pg_extension_config_dump('dgen.supervisor', '');
SELECT pg_extension_config_dump('dgen.child', '');
SELECT pg_extension_config_dump('dgen.audit', '');
SELECT pg_extension_config_dump('dgen.module_id', '');
SELECT pg_extension_config_dump('dgen.message_id', '');

/*
 * Looks at all that was made, so it comes last; writes dgen.installation.  Nobody needs it after
 * this.
 */
CREATE FUNCTION dgen.installed() RETURNS void
	LANGUAGE c VOLATILE PARALLEL UNSAFE
	AS 'MODULE_PATHNAME', 'dgen_installed';
SELECT dgen.installed();
DROP FUNCTION dgen.installed();
