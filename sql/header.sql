/* dgen: GenServer for PostgreSQL */

\echo Use "CREATE EXTENSION dgen" to load this file. \quit

/* Nothing here may depend on what is in other schemas. */
SET LOCAL search_path TO pg_catalog, pg_temp;

