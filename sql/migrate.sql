
/* ---------------------------------------------------------------- migration
 *
 * New code for old states.  Rows of the report and of the view are those of
 * modules that the caller may operate, or read.
 */

CREATE FUNCTION dgen.migrate(
	module text,
	dry_run boolean DEFAULT false,
	max_servers bigint DEFAULT NULL,
	OUT server text,
	OUT old_vsn text,
	OUT version bigint,
	OUT error jsonb)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_migrate';
COMMENT ON FUNCTION dgen.migrate(text, boolean, bigint) IS
'bring all servers of a module, or so many, to its vsn by callback code_change, in the caller''s transaction: one row a server; the first error undoes all. With dry_run each is undone at once, and errors are shown';

CREATE PROCEDURE dgen.migrate_all(
	module text,
	batch bigint DEFAULT 1000,
	INOUT migrated bigint DEFAULT NULL,
	INOUT failed bigint DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'dgen_migrate_all';
COMMENT ON PROCEDURE dgen.migrate_all(text, bigint, bigint, bigint) IS
'bring all servers of a module to its vsn, in a transaction for each batch of servers; one that fails is left as it is, and counted';

CREATE FUNCTION dgen.migrate_progress(
	OUT pid integer,
	OUT module text,
	OUT dry_run boolean,
	OUT started_at timestamptz,
	OUT servers_total bigint,
	OUT servers_done bigint,
	OUT servers_failed bigint)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 2
AS 'MODULE_PATHNAME', 'dgen_migrate_progress';
COMMENT ON FUNCTION dgen.migrate_progress() IS
'source of view dgen.progress_migrate';

CREATE VIEW dgen.progress_migrate AS
	SELECT * FROM dgen.migrate_progress();
COMMENT ON VIEW dgen.progress_migrate IS
'migrations that are running in this database; of modules that the current user may read';
COMMENT ON COLUMN dgen.progress_migrate.pid IS 'process that migrates';
COMMENT ON COLUMN dgen.progress_migrate.module IS 'module whose servers are migrated';
COMMENT ON COLUMN dgen.progress_migrate.dry_run IS 'nothing of it will remain';
COMMENT ON COLUMN dgen.progress_migrate.started_at IS 'when it began';
COMMENT ON COLUMN dgen.progress_migrate.servers_total IS 'servers that are to be migrated; 0 while they are counted';
COMMENT ON COLUMN dgen.progress_migrate.servers_done IS 'servers that are done, failed ones included';
COMMENT ON COLUMN dgen.progress_migrate.servers_failed IS 'servers whose migration has failed';
