
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

CREATE FUNCTION dgen.progress_info(
	OUT pid integer,
	OUT command text,
	OUT module text,
	OUT done bigint,
	OUT total bigint,
	OUT failed bigint,
	OUT dry_run boolean,
	OUT started_at timestamptz)
RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 2
AS 'MODULE_PATHNAME', 'dgen_progress_info';
COMMENT ON FUNCTION dgen.progress_info() IS
'source of views dgen.progress and dgen.progress_migrate';

CREATE VIEW dgen.progress AS
	SELECT * FROM dgen.progress_info();
COMMENT ON VIEW dgen.progress IS
'what takes long and is running in this database: how far it has come';
COMMENT ON COLUMN dgen.progress.pid IS 'process that it runs in';
COMMENT ON COLUMN dgen.progress.command IS 'migrate and refresh attributes, which count servers; requeue and purge: dead letters; delete and drop module: rows of all kinds';
COMMENT ON COLUMN dgen.progress.module IS 'module that it is about';
COMMENT ON COLUMN dgen.progress.done IS 'how many are done, failed ones included';
COMMENT ON COLUMN dgen.progress.total IS 'how many there are, of drop module those that are counted; 0: not known, or not yet';
COMMENT ON COLUMN dgen.progress.failed IS 'how many have failed';
COMMENT ON COLUMN dgen.progress.dry_run IS 'nothing of it will remain';
COMMENT ON COLUMN dgen.progress.started_at IS 'when it began';

CREATE VIEW dgen.progress_migrate AS
	SELECT pid, module, dry_run, started_at, total AS servers_total, done AS servers_done,
		failed AS servers_failed
	FROM dgen.progress_info()
	WHERE command = 'migrate';
COMMENT ON VIEW dgen.progress_migrate IS
'migrations that are running in this database; of modules that the current user may read';
COMMENT ON COLUMN dgen.progress_migrate.pid IS 'process that migrates';
COMMENT ON COLUMN dgen.progress_migrate.module IS 'module whose servers are migrated';
COMMENT ON COLUMN dgen.progress_migrate.dry_run IS 'nothing of it will remain';
COMMENT ON COLUMN dgen.progress_migrate.started_at IS 'when it began';
COMMENT ON COLUMN dgen.progress_migrate.servers_total IS 'servers that are to be migrated; 0 while they are counted';
COMMENT ON COLUMN dgen.progress_migrate.servers_done IS 'servers that are done, failed ones included';
COMMENT ON COLUMN dgen.progress_migrate.servers_failed IS 'servers whose migration has failed';
