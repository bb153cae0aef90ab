
/* --------------------------------------------------------------- attributes
 *
 * What a module's callback attributes makes of the states of its servers is
 * kept in a table of its own, dgen.attributes_<id of the module>, and shown by
 * view servers in the module's schema.  Both come and go with the callback,
 * by create_module and alter_module.
 */

CREATE FUNCTION dgen.create_index(module text, expression text, "unique" boolean DEFAULT false, name text DEFAULT NULL)
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_create_index';
COMMENT ON FUNCTION dgen.create_index(text, text, boolean, text) IS
'make an index for view servers of a module: over an expression of built-in functions and of columns server, key and attributes, like attributes->>''email''. Returns its name. A unique one refuses activations that would violate it';

CREATE FUNCTION dgen.drop_index(module text, name text)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_drop_index';
COMMENT ON FUNCTION dgen.drop_index(text, text) IS
'drop an index that dgen.create_index() made';

CREATE FUNCTION dgen.refresh_attributes(module text)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'dgen_refresh_attributes';
COMMENT ON FUNCTION dgen.refresh_attributes(text) IS
'run callback attributes on the states of all servers of a module, after it was changed; returns how many servers have other attributes now. No server of any module changes its state meanwhile';
