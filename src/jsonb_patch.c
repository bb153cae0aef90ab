/*-------------------------------------------------------------------------
 *
 * jsonb_patch.c
 *	  Differences between jsonb documents, as jsonb: diff, merge, compose; and
 *	  the changes of two sides in one document: rebase.
 *
 * A patch is a tree of nodes.  What a node says about one value:
 *
 *	scalar			the value becomes this scalar
 *	[v]				the value becomes v
 *	{k: node, ...}	the value is an object.  Its members k are patched and the
 *					others stay; [] as the node of a member removes it, and a
 *					node that makes a value adds a member that is not there
 *	[op, op, ...]	the value is an array, and two or more operations, working
 *					through the old one with a cursor, say what the new one is:
 *						n > 0			n elements as they are
 *						n <= 0			go to element -n
 *						{...} or [op, op, ...]	one element, patched
 *						[v]				v, which is new
 *						string, boolean, null	itself, which is new
 *
 * For example {"count": 5, "old": [], "items": [17, {"n": [6]}, 9982]}.  The
 * number of elements of a node tells its kind, so that values that look like
 * patches need no escapes.  Elements are named by place alone: objects in
 * arrays are recognized by their "id", but only diff() knows of that.
 *
 * Values are equal if their bytes are: 1 is not 1.0.  What diff() promises is
 * that merging its result gives the new document to the byte, and for this
 * the layout must be what convertToJsonb() makes; see write_build().
 *
 * The bytes of an array or object do not depend on where it is, as jsonb
 * aligns them to 4 bytes and counts offsets from their own start.  So equal
 * parts are found with memcmp() and copied with memcpy(); neither is ever
 * unpacked, which is what makes this much faster than JsonbIterator and
 * pushJsonbValue().
 *
 * All here are pure functions in any process.  They may raise errors.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include "common/hashfn.h"
#include "port/pg_bitutils.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

/*
 * Below this depth diff() takes values whole.  It bounds the stack, so that
 * every document that jsonb takes has a diff, and how often the same bytes
 * are compared, once a level.
 */
#define MAX_DEPTH 100

/* bytes that a copy costs in a patch, and one from elsewhere */
#define COPY_COST 12
#define MOVE_COST 24

/* how much is tried to find out where an element came from */
#define MAX_CANDIDATES 16
#define MAX_LOOK_AHEAD 16

/* children compared at once */
#define BLOCK 32

/* A value, or a key, where it is in some jsonb. */
typedef struct JsonNode
{
	uint32		type;			/* JENTRY_IS... */
	uint32		len;			/* without padding */
	char	   *data;			/* behind padding */
} JsonNode;

/* Walks the children of a container, or the keys or values of an object. */
typedef struct Reader
{
	JsonbContainer *container;
	char	   *data;			/* where offsets count from */
	uint32		next;			/* index of a child */
	uint32		end;
	uint32		offset;			/* of the next child */
} Reader;

typedef struct Build Build;

/* A value to be written: one that is in some jsonb, or one being built. */
typedef struct Value
{
	JsonNode	node;
	Build	   *build;			/* NULL: node */
} Value;

/* One child of what is built, or a run of children from a container. */
typedef struct Piece
{
	JsonNode	key;			/* in an object, but for runs */
	Value		value;			/* of a run: the container */
	uint32		first;			/* of a run */
	uint32		n;				/* 0: not a run */
} Piece;

struct Build
{
	bool		object;
	int			npieces;
	int			maxpieces;
	Piece	   *pieces;
	uint64		count;			/* of elements or pairs */
	uint64		bytes;			/* that it takes at most */
};

typedef enum PatchKind
{
	PATCH_SET,
	PATCH_REMOVE,
	PATCH_OBJECT,
	PATCH_ARRAY
} PatchKind;

typedef enum OpKind
{
	OP_COPY,
	OP_PATCH,
	OP_INSERT
} OpKind;

/* An operation of an array's patch. */
typedef struct Op
{
	OpKind		kind;
	int64		from;			/* place in the old array, but for OP_INSERT */
	int64		to;				/* place in the new array */
	int64		n;
	JsonNode	node;			/* the patch, or the value to insert */
} Op;

typedef struct OpReader
{
	Reader		reader;
	int64		cursor;			/* in the old array */
	int64		made;			/* elements of the new one */
} OpReader;

/* Writes the operations of an array's patch. */
typedef struct OpWriter
{
	Build	   *build;
	int64		cursor;			/* where the reader of the patch will be */
	int64		from;			/* a copy not written yet, if n > 0 */
	int64		n;
} OpWriter;

static bool diff_node(JsonNode *base, JsonNode *new, int depth, Value *patch);
static Value merge_node(JsonNode *base, JsonNode *patch);
static Value compose_node(JsonNode *first, JsonNode *second);
static uint32 write_build(char *to, Build *build);

pg_noreturn static void
malformed(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("malformed jsonb patch"),
			 errdetail_internal("%s", detail)));
}

pg_noreturn static void
misfit(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("jsonb patch does not fit what it is applied to"),
			 errdetail_internal("%s", detail)));
}

pg_noreturn static void
too_large(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("total size of jsonb exceeds the maximum of %d bytes",
					JENTRY_OFFLENMASK)));
}

/* ----------------------------------------------------------------- reading */

static inline JsonbContainer *
container_of(const JsonNode *node)
{
	return (JsonbContainer *) node->data;
}

static inline uint32
count_of(const JsonNode *node)
{
	return JsonContainerSize(container_of(node));
}

static inline bool
is_object(const JsonNode *node)
{
	return node->type == JENTRY_ISCONTAINER && JsonContainerIsObject(container_of(node));
}

static inline bool
is_array(const JsonNode *node)
{
	return node->type == JENTRY_ISCONTAINER && JsonContainerIsArray(container_of(node));
}

static inline bool
is_padded(uint32 type)
{
	return type == JENTRY_ISNUMERIC || type == JENTRY_ISCONTAINER;
}

static inline bool
node_equal(const JsonNode *a, const JsonNode *b)
{
	return a->type == b->type && a->len == b->len &&
		memcmp(a->data, b->data, a->len) == 0;
}

/* The order of keys in an object. */
static inline int
key_compare(const JsonNode *a, const JsonNode *b)
{
	if (a->len != b->len)
		return a->len < b->len ? -1 : 1;
	return memcmp(a->data, b->data, a->len);
}

/* Read the children first to end - 1; of an object, all keys precede all values. */
static void
read_begin(Reader *reader, const JsonNode *node, uint32 first, uint32 end)
{
	JsonbContainer *container = container_of(node);
	uint32		children = JsonContainerSize(container);

	if (JsonContainerIsObject(container))
		children *= 2;
	reader->container = container;
	reader->data = (char *) &container->children[children];
	reader->next = first;
	reader->end = end;
	reader->offset = getJsonbOffset(container, first);
}

static inline bool
read_next(Reader *reader, JsonNode *node)
{
	JEntry		entry;
	uint32		start = reader->offset;

	if (reader->next >= reader->end)
		return false;
	entry = reader->container->children[reader->next++];
	JBE_ADVANCE_OFFSET(reader->offset, entry);
	node->type = entry & JENTRY_TYPEMASK;
	if (is_padded(node->type))
		start = INTALIGN(start);
	node->data = reader->data + start;
	node->len = reader->offset - start;
	return true;
}

/*
 * Skip the next BLOCK children of both, if these are the same.  Padding is
 * part of their lengths and bytes, and depends on where they begin.
 */
static bool
skip_same(Reader *a, Reader *b)
{
	Reader		x = *a;
	Reader		y = *b;
	bool		shifted = (x.offset & 3) != (y.offset & 3);

	if (x.end - x.next < BLOCK || y.end - y.next < BLOCK)
		return false;
	for (int i = 0; i < BLOCK; i++)
	{
		JEntry		x_entry = x.container->children[x.next++];
		JEntry		y_entry = y.container->children[y.next++];
		uint32		distance = x.offset - y.offset;

		JBE_ADVANCE_OFFSET(x.offset, x_entry);
		JBE_ADVANCE_OFFSET(y.offset, y_entry);
		if (((x_entry ^ y_entry) & JENTRY_TYPEMASK) != 0 ||
			x.offset - y.offset != distance ||
			(shifted && is_padded(x_entry & JENTRY_TYPEMASK)))
			return false;
	}
	if (memcmp(a->data + a->offset, b->data + b->offset, x.offset - a->offset) != 0)
		return false;
	*a = x;
	*b = y;
	return true;
}

static JsonNode
child_at(const JsonNode *node, uint32 index)
{
	Reader		reader;
	JsonNode	child = {0};

	read_begin(&reader, node, index, index + 1);
	read_next(&reader, &child);
	return child;
}

/* A scalar document is stored as an array, with a flag. */
static JsonNode
root_node(Jsonb *jb)
{
	JsonNode	node;

	node.type = JENTRY_ISCONTAINER;
	node.len = VARSIZE(jb) - VARHDRSZ;
	node.data = (char *) &jb->root;
	return JB_ROOT_IS_SCALAR(jb) ? child_at(&node, 0) : node;
}

/*
 * Walks the members of two objects side by side, in the order of their keys.
 */
typedef struct Side
{
	Reader		keys;
	Reader		values;
	JsonNode	key;
	JsonNode	value;
	bool		more;			/* key and value are set */
	bool		here;			/* has the walk's current key */
} Side;

typedef struct MemberWalk
{
	Side		a;
	Side		b;
	JsonNode   *key;
} MemberWalk;

static void
side_begin(Side *side, const JsonNode *object)
{
	uint32		count = count_of(object);

	read_begin(&side->keys, object, 0, count);
	read_begin(&side->values, object, count, 2 * count);
	side->here = true;
}

static inline void
side_next(Side *side)
{
	side->more = read_next(&side->keys, &side->key) &&
		read_next(&side->values, &side->value);
}

static void
walk_begin(MemberWalk *walk, const JsonNode *a, const JsonNode *b)
{
	side_begin(&walk->a, a);
	side_begin(&walk->b, b);
}

static bool
walk_next(MemberWalk *walk)
{
	Side	   *a = &walk->a;
	Side	   *b = &walk->b;
	int			order;

	if (a->here)
		side_next(a);
	if (b->here)
		side_next(b);
	if (!a->more && !b->more)
		return false;
	if (a->more && b->more)
		order = key_compare(&a->key, &b->key);
	else
		order = a->more ? -1 : 1;
	a->here = order <= 0;
	b->here = order >= 0;
	walk->key = a->here ? &a->key : &b->key;
	return true;
}

/* Skip members that are the same in both, as long as whole blocks are. */
static void
walk_skip_same(MemberWalk *walk)
{
	Reader		a_keys = walk->a.keys;
	Reader		b_keys = walk->b.keys;

	if (!walk->a.here || !walk->b.here)
		return;					/* one has a member that was not dealt with */
	while (skip_same(&a_keys, &b_keys) &&
		   skip_same(&walk->a.values, &walk->b.values))
	{
		walk->a.keys = a_keys;
		walk->b.keys = b_keys;
	}
}

/* What kind of patch a node is, and for PATCH_SET the value. */
static PatchKind
patch_kind(const JsonNode *patch, JsonNode *value)
{
	if (patch->type != JENTRY_ISCONTAINER)
	{
		*value = *patch;
		return PATCH_SET;
	}
	if (is_object(patch))
		return PATCH_OBJECT;
	switch (count_of(patch))
	{
		case 0:
			return PATCH_REMOVE;
		case 1:
			*value = child_at(patch, 0);
			return PATCH_SET;
		default:
			return PATCH_ARRAY;
	}
}

/* ---------------------------------------------------------------- building */

static Value
node_value(const JsonNode *node)
{
	Value		value;

	value.node = *node;
	value.build = NULL;
	return value;
}

static Value
build_value(Build *build)
{
	Value		value = {0};

	value.build = build;
	return value;
}

static inline bool
value_is_scalar(const Value *value)
{
	return value->build == NULL && value->node.type != JENTRY_ISCONTAINER;
}

/* Bytes that a value takes at most, without its JEntry. */
static inline uint64
value_bytes(const Value *value)
{
	if (value->build)
		return value->build->bytes + 3;
	return (uint64) value->node.len + (is_padded(value->node.type) ? 3 : 0);
}

static Build *
build_new(bool object)
{
	Build	   *build = palloc0(sizeof(Build));

	build->object = object;
	build->bytes = sizeof(uint32);
	return build;
}

static Piece *
build_piece(Build *build)
{
	if (build->npieces == build->maxpieces)
	{
		build->maxpieces = Max(4, build->maxpieces * 2);
		if (build->pieces == NULL)
			build->pieces = palloc(build->maxpieces * sizeof(Piece));
		else
			build->pieces = repalloc_huge(build->pieces, build->maxpieces * sizeof(Piece));
	}
	return &build->pieces[build->npieces++];
}

/* Members of objects must be added in the order of their keys. */
static void
build_add(Build *build, const JsonNode *key, Value value)
{
	Piece	   *piece = build_piece(build);

	piece->value = value;
	piece->n = 0;
	build->count++;
	build->bytes += sizeof(JEntry) + value_bytes(&value);
	if (key)
	{
		piece->key = *key;
		build->bytes += sizeof(JEntry) + key->len;
	}
}

/* Add elements or pairs of another container, from the first on. */
static void
build_run(Build *build, const JsonNode *source, uint32 first, uint32 n)
{
	JsonbContainer *container = container_of(source);
	uint32		start = first;
	Piece	   *piece;

	if (n == 0)
		return;
	piece = build_piece(build);
	piece->value = node_value(source);
	piece->first = first;
	piece->n = n;
	build->count += n;
	if (build->object)
	{
		build->bytes += (uint64) n * sizeof(JEntry) +
			getJsonbOffset(container, first + n) - getJsonbOffset(container, first);
		start += JsonContainerSize(container);
	}
	/* each may need more padding than it had */
	build->bytes += (uint64) n * (sizeof(JEntry) + 3) +
		getJsonbOffset(container, start + n) - getJsonbOffset(container, start);
}

/*
 * A patch that sets a value.  Among the operations of an array a plain number
 * would be a count.
 */
static Value
set_value(Value value, bool in_array)
{
	Build	   *build;

	if (value_is_scalar(&value) && !(in_array && value.node.type == JENTRY_ISNUMERIC))
		return value;
	build = build_new(false);
	build_add(build, NULL, value);
	return build_value(build);
}

static bool
value_is_set(const Value *value)
{
	if (value->build)
		return !value->build->object && value->build->count == 1;
	return value_is_scalar(value) ||
		(is_array(&value->node) && count_of(&value->node) == 1);
}

static Value
number_value(int64 number)
{
	Numeric		numeric = int64_to_numeric(number);
	JsonNode	node;

	node.type = JENTRY_ISNUMERIC;
	node.len = VARSIZE(numeric);
	node.data = (char *) numeric;
	return node_value(&node);
}

/* ----------------------------------------------------------------- writing
 *
 * To the byte what convertJsonbArray() and convertJsonbObject() write: padding
 * is zero and counts to what is behind it, and each JB_OFFSET_STRIDE'th JEntry
 * has the end's offset in place of the length.
 */

/* A container being written. */
typedef struct Level
{
	JEntry	   *entries;
	char	   *data;
	uint32		next;			/* JEntry */
	uint32		total;			/* length of the data */
} Level;

static inline void
level_entry(Level *level, uint32 type, uint32 len)
{
	level->total += len;
	if (level->total > JENTRY_OFFLENMASK)
		too_large();
	level->entries[level->next] = type |
		(level->next % JB_OFFSET_STRIDE == 0 ? (JENTRY_HAS_OFF | level->total) : len);
	level->next++;
}

/* Writes the padding in front of a child; how much it is. */
static inline uint32
level_pad(Level *level, uint32 type)
{
	uint32		pad = is_padded(type) ? INTALIGN(level->total) - level->total : 0;

	memset(level->data + level->total, 0, pad);
	return pad;
}

static inline void
level_node(Level *level, const JsonNode *node)
{
	uint32		pad = level_pad(level, node->type);

	memcpy(level->data + level->total + pad, node->data, node->len);
	level_entry(level, node->type, pad + node->len);
}

static void
level_value(Level *level, const Value *value)
{
	uint32		pad;

	if (value->build == NULL)
	{
		level_node(level, &value->node);
		return;
	}
	pad = level_pad(level, JENTRY_ISCONTAINER);
	level_entry(level, JENTRY_ISCONTAINER,
				pad + write_build(level->data + level->total + pad, value->build));
}

/*
 * Copies children of another container.  Where they come to lie at the same
 * distance from a multiple of 4 their padding stays, and all go at once.
 */
static void
level_run(Level *level, const JsonNode *source, uint32 first, uint32 n)
{
	Reader		reader;
	JsonNode	node;
	uint32		start;
	uint32		before = level->total;

	read_begin(&reader, source, first, first + n);
	if ((reader.offset & 3) != (level->total & 3))
	{
		while (read_next(&reader, &node))
			level_node(level, &node);
		return;
	}
	start = reader.offset;
	for (uint32 i = first; i < first + n; i++)
	{
		JEntry		entry = reader.container->children[i];
		uint32		child = reader.offset;

		JBE_ADVANCE_OFFSET(reader.offset, entry);
		level_entry(level, entry & JENTRY_TYPEMASK, reader.offset - child);
	}
	memcpy(level->data + before, reader.data + start, reader.offset - start);
}

/* Writes a container to an aligned place; its length. */
static uint32
write_build(char *to, Build *build)
{
	Level		level;
	uint64		children = build->object ? 2 * build->count : build->count;
	uint64		len;

	check_stack_depth();
	/* more than this would not have been allocated */
	Assert(build->count <= JB_CMASK);
	*(uint32 *) to = build->count | (build->object ? JB_FOBJECT : JB_FARRAY);
	level.entries = (JEntry *) (to + sizeof(uint32));
	level.data = (char *) (level.entries + children);
	level.next = 0;
	level.total = 0;

	for (int i = 0; build->object && i < build->npieces; i++)
	{
		Piece	   *piece = &build->pieces[i];

		if (piece->n > 0)
			level_run(&level, &piece->value.node, piece->first, piece->n);
		else
			level_node(&level, &piece->key);
	}
	for (int i = 0; i < build->npieces; i++)
	{
		Piece	   *piece = &build->pieces[i];
		JsonNode   *source = &piece->value.node;

		if (piece->n > 0)
			level_run(&level, source, piece->first + (build->object ? count_of(source) : 0),
					  piece->n);
		else
			level_value(&level, &piece->value);
	}
	Assert(level.next == children);

	len = level.data + level.total - to;
	if (len > JENTRY_OFFLENMASK)
		too_large();
	return len;
}

/* The document, in a memory context. */
static Jsonb *
value_to_jsonb(Value value, MemoryContext mcxt)
{
	bool		scalar = value_is_scalar(&value);
	uint64		bytes;
	uint32		len;
	Jsonb	   *result;

	if (scalar)
	{
		Build	   *build = build_new(false);

		build_add(build, NULL, value);
		value = build_value(build);
	}
	bytes = VARHDRSZ + value_bytes(&value);
	if (bytes > MaxAllocSize)
		too_large();
	result = MemoryContextAlloc(mcxt, bytes);
	if (value.build)
		len = write_build((char *) &result->root, value.build);
	else
	{
		len = value.node.len;
		memcpy(&result->root, value.node.data, len);
	}
	if (scalar)
		result->root.header |= JB_FSCALAR;
	SET_VARSIZE(result, VARHDRSZ + len);
	return result;
}

/* ----------------------------------------------------- operations of arrays */

static void
ops_begin(OpWriter *ops)
{
	memset(ops, 0, sizeof(OpWriter));
	ops->build = build_new(false);
}

static void
ops_seek(OpWriter *ops, int64 to)
{
	if (ops->cursor != to)
		build_add(ops->build, NULL, number_value(-to));
	ops->cursor = to;
}

static void
ops_flush(OpWriter *ops)
{
	if (ops->n > 0)
	{
		ops_seek(ops, ops->from);
		build_add(ops->build, NULL, number_value(ops->n));
		ops->cursor += ops->n;
		ops->n = 0;
	}
}

static void
ops_copy(OpWriter *ops, int64 from, int64 n)
{
	/* counts are read as int4 */
	if (ops->n > 0 && from == ops->from + ops->n && ops->n + n <= PG_INT32_MAX)
	{
		ops->n += n;
		return;
	}
	ops_flush(ops);
	ops->from = from;
	ops->n = n;
}

static void
ops_insert(OpWriter *ops, Value value)
{
	ops_flush(ops);
	build_add(ops->build, NULL, set_value(value, true));
}

/* A patch that sets the element needs no old one, and does not use it up. */
static void
ops_patch(OpWriter *ops, int64 from, Value patch)
{
	ops_flush(ops);
	if (!value_is_set(&patch))
	{
		ops_seek(ops, from);
		ops->cursor++;
	}
	build_add(ops->build, NULL, patch);
}

static Value
ops_end(OpWriter *ops)
{
	Build	   *build = ops->build;

	ops_flush(ops);
	if (build->count == 0)
		return set_value(build_value(build), true);
	if (build->count == 1)
	{
		/* must be two, not to be taken for a value: go where it begins */
		build = build_new(false);
		build_add(build, NULL, number_value(0));
		build_add(build, NULL, ops->build->pieces[0].value);
	}
	return build_value(build);
}

static void
ops_read(OpReader *ops, const JsonNode *patch)
{
	read_begin(&ops->reader, patch, 0, count_of(patch));
	ops->cursor = 0;
	ops->made = 0;
}

/* A number, written as diff() writes it. */
static int64
read_number(const JsonNode *node)
{
	bool		error = false;
	int64		number = numeric_int4_opt_error((Numeric) node->data, &error);
	Value		again;

	if (error)
		malformed("A number in the patch of an array is out of range.");
	again = number_value(number);
	if (!node_equal(node, &again.node))
		malformed("A number in the patch of an array is not an integer.");
	return number;
}

static bool
ops_next(OpReader *ops, Op *op)
{
	JsonNode	node;

	while (read_next(&ops->reader, &node))
	{
		op->node = node;
		op->n = 1;
		if (node.type == JENTRY_ISNUMERIC)
		{
			int64		number = read_number(&node);

			if (number <= 0)
			{
				ops->cursor = -number;
				continue;
			}
			op->kind = OP_COPY;
			op->n = number;
		}
		else
		{
			switch (patch_kind(&node, &op->node))
			{
				case PATCH_SET:
					op->kind = OP_INSERT;
					break;
				case PATCH_REMOVE:
					malformed("An element of an array cannot be removed by [].");
				case PATCH_OBJECT:
				case PATCH_ARRAY:
					op->kind = OP_PATCH;
					break;
			}
		}
		op->from = ops->cursor;
		op->to = ops->made;
		ops->made += op->n;
		if (op->kind != OP_INSERT)
			ops->cursor += op->n;
		return true;
	}
	return false;
}

/* -------------------------------------------------------------------- diff */

/*
 * Two arrays without the elements that they have in common at both ends, and
 * an index of the old one's, made when first needed.
 */
typedef struct Alignment
{
	JsonNode   *base;
	JsonNode   *new;
	uint32		nbase;
	uint32		nnew;
	JsonNode   *base_keys;		/* NULL: no index yet */
	JsonNode   *new_keys;
	uint32	   *base_hashes;
	uint32	   *new_hashes;
	int32	   *heads;			/* by hash: the first base element, or -1 */
	int32	   *nexts;			/* by base element: the next of that hash */
	uint32		mask;
} Alignment;

/* What an element is known by: its "id" if it has one, or else its bytes. */
static bool
element_key(JsonNode *element, JsonNode *key)
{
	JsonbValue	id;

	if (is_object(element) &&
		getKeyJsonValueFromContainer(container_of(element), "id", 2, &id) != NULL &&
		id.type == jbvString)
	{
		key->type = JENTRY_ISSTRING;
		key->len = id.val.string.len;
		key->data = id.val.string.val;
		return true;
	}
	*key = *element;
	return false;
}

static bool
same_element(JsonNode *a, JsonNode *b)
{
	JsonNode	key_a;
	JsonNode	key_b;

	return node_equal(a, b) ||
		(element_key(a, &key_a) && element_key(b, &key_b) && node_equal(&key_a, &key_b));
}

static void *
alloc_array(uint32 n, Size size)
{
	return MemoryContextAllocHuge(CurrentMemoryContext, Max(n, 1) * size);
}

static void
hash_elements(JsonNode *elements, uint32 n, JsonNode **keys, uint32 **hashes)
{
	*keys = alloc_array(n, sizeof(JsonNode));
	*hashes = alloc_array(n, sizeof(uint32));
	for (uint32 i = 0; i < n; i++)
	{
		JsonNode   *key = &(*keys)[i];

		element_key(&elements[i], key);
		(*hashes)[i] = hash_bytes((unsigned char *) key->data, key->len) ^ key->type;
	}
}

static void
index_elements(Alignment *al)
{
	if (al->base_keys)
		return;
	hash_elements(al->base, al->nbase, &al->base_keys, &al->base_hashes);
	hash_elements(al->new, al->nnew, &al->new_keys, &al->new_hashes);
	al->mask = pg_nextpower2_32(Max(al->nbase, 1)) - 1;
	al->heads = alloc_array(al->mask + 1, sizeof(int32));
	al->nexts = alloc_array(al->nbase, sizeof(int32));
	memset(al->heads, -1, ((Size) al->mask + 1) * sizeof(int32));
	for (int64 i = (int64) al->nbase - 1; i >= 0; i--)
	{
		int32	   *head = &al->heads[al->base_hashes[i] & al->mask];

		al->nexts[i] = *head;
		*head = i;
	}
}

/* Bytes of the elements from these on that are the same, as far as looked. */
static uint32
run_bytes(Alignment *al, uint32 b, uint32 n)
{
	uint32		bytes = 0;

	for (int i = 0; i < MAX_LOOK_AHEAD && b < al->nbase && n < al->nnew; i++, b++, n++)
	{
		if (al->base_hashes[b] != al->new_hashes[n] ||
			!node_equal(&al->base_keys[b], &al->new_keys[n]))
			break;
		bytes += sizeof(JEntry) + al->new[n].len;
	}
	return bytes;
}

/*
 * Which base element the new element n is; -1 if none.  It is expected at
 * place 'at': behind the last one (in_step), or as far behind as n is behind
 * the last new one that was found.  Else the candidate with the longest run
 * of same elements counts.  All this decides how small a patch gets, never
 * whether it is right, so duplicates of elements or ids do no harm.
 */
static int64
align_element(Alignment *al, uint32 at, uint32 n, bool in_step)
{
	int64		best = -1;
	uint32		best_bytes = MOVE_COST - 1;
	int			tries = 0;

	if (at < al->nbase && in_step && same_element(&al->base[at], &al->new[n]))
		return at;
	if (al->nbase == 0)
		return -1;
	index_elements(al);
	if (at < al->nbase && run_bytes(al, at, n) >= COPY_COST)
		return at;
	for (int32 b = al->heads[al->new_hashes[n] & al->mask];
		 b >= 0 && tries < MAX_CANDIDATES;
		 b = al->nexts[b], tries++)
	{
		uint32		bytes = run_bytes(al, b, n);

		if (bytes > best_bytes)
		{
			best = b;
			best_bytes = bytes;
		}
	}
	return best;
}

/* Write operations for the part of an array that begins at place first. */
static void
diff_elements(Alignment *al, uint32 first, int depth, OpWriter *ops)
{
	uint32		at = 0;
	bool		in_step = true;

	for (uint32 n = 0; n < al->nnew; n++)
	{
		JsonNode   *new = &al->new[n];
		JsonNode	key;
		Value		patch;
		int64		found = align_element(al, at, n, in_step);

		CHECK_FOR_INTERRUPTS();
		in_step = found >= 0;
		if (in_step)
			at = found;
		if (in_step && node_equal(&al->base[at], new))
			ops_copy(ops, (int64) first + at, 1);
		/* without ids, what is in the same place may be the same thing */
		else if (at < al->nbase &&
				 (in_step || (!element_key(new, &key) && !element_key(&al->base[at], &key))) &&
				 diff_node(&al->base[at], new, depth, &patch))
			ops_patch(ops, (int64) first + at, patch);
		else
			ops_insert(ops, node_value(new));
		at++;
	}
}

static JsonNode *
read_elements(const JsonNode *array, uint32 first, uint32 *n)
{
	Reader		reader;
	JsonNode   *elements;

	*n = count_of(array) - first;
	elements = alloc_array(*n, sizeof(JsonNode));
	read_begin(&reader, array, first, first + *n);
	for (uint32 i = 0; i < *n; i++)
		read_next(&reader, &elements[i]);
	return elements;
}

static Value
diff_array(JsonNode *base, JsonNode *new, int depth)
{
	Reader		base_reader;
	Reader		new_reader;
	JsonNode	base_element;
	JsonNode	new_element;
	Alignment	al = {0};
	OpWriter	ops;
	uint32		before = 0;
	uint32		behind = 0;

	read_begin(&base_reader, base, 0, count_of(base));
	read_begin(&new_reader, new, 0, count_of(new));
	while (skip_same(&base_reader, &new_reader))
		before += BLOCK;
	while (read_next(&base_reader, &base_element) &&
		   read_next(&new_reader, &new_element) &&
		   node_equal(&base_element, &new_element))
		before++;

	al.base = read_elements(base, before, &al.nbase);
	al.new = read_elements(new, before, &al.nnew);
	while (al.nbase > 0 && al.nnew > 0 &&
		   node_equal(&al.base[al.nbase - 1], &al.new[al.nnew - 1]))
	{
		al.nbase--;
		al.nnew--;
		behind++;
	}

	ops_begin(&ops);
	ops_copy(&ops, 0, before);
	diff_elements(&al, before, depth, &ops);
	ops_copy(&ops, count_of(base) - behind, behind);
	return ops_end(&ops);
}

static Value
diff_object(JsonNode *base, JsonNode *new, int depth)
{
	Value		removed = build_value(build_new(false));	/* [] */
	Build	   *build = build_new(true);
	MemberWalk	walk;
	Value		patch;

	walk_begin(&walk, base, new);
	for (;;)
	{
		/* not at each member, as it costs most where it finds nothing */
		if (walk.a.keys.next % BLOCK == 0)
			walk_skip_same(&walk);
		if (!walk_next(&walk))
			break;
		if (!walk.b.here)
			patch = removed;
		else if (walk.a.here && node_equal(&walk.a.value, &walk.b.value))
			continue;
		else if (!walk.a.here || !diff_node(&walk.a.value, &walk.b.value, depth, &patch))
			patch = set_value(node_value(&walk.b.value), false);
		build_add(build, walk.key, patch);
	}
	return build_value(build);
}

/*
 * The patch from base to new, which differ; false if it is not smaller than
 * one that sets the value.
 */
static bool
diff_node(JsonNode *base, JsonNode *new, int depth, Value *patch)
{
	Value		whole;

	if (depth >= MAX_DEPTH)
		return false;
	if (is_object(base) && is_object(new))
		*patch = diff_object(base, new, depth + 1);
	else if (is_array(base) && is_array(new))
		*patch = diff_array(base, new, depth + 1);
	else
		return false;
	whole = set_value(node_value(new), false);
	return value_bytes(patch) < value_bytes(&whole);
}

/* ------------------------------------------------------------------- merge */

static Value
merge_object(JsonNode *base, JsonNode *patch)
{
	Build	   *build = build_new(true);
	uint32		count = count_of(base);
	uint32		done = 0;		/* members of base */
	uint32		at = 0;
	Reader		keys;
	JsonNode	key;
	bool		more;
	Side		member;

	read_begin(&keys, base, 0, count);
	more = read_next(&keys, &key);
	side_begin(&member, patch);
	for (side_next(&member); member.more; side_next(&member))
	{
		JsonNode	value;
		bool		found;

		while (more && key_compare(&key, &member.key) < 0)
		{
			at++;
			more = read_next(&keys, &key);
		}
		build_run(build, base, done, at - done);
		done = at;
		found = more && key_compare(&key, &member.key) == 0;
		if (found)
			done++;
		if (patch_kind(&member.value, &value) == PATCH_REMOVE)
			continue;
		if (found)
			value = child_at(base, count + at);
		build_add(build, &member.key, merge_node(found ? &value : NULL, &member.value));
	}
	build_run(build, base, done, count - done);
	return build_value(build);
}

static Value
merge_array(JsonNode *base, JsonNode *patch)
{
	Build	   *build = build_new(false);
	uint32		count = count_of(base);
	OpReader	ops;
	Op			op;
	JsonNode	element;

	ops_read(&ops, patch);
	while (ops_next(&ops, &op))
	{
		if (op.kind != OP_INSERT && op.from + op.n > count)
			misfit("The array is too short.");
		switch (op.kind)
		{
			case OP_COPY:
				build_run(build, base, op.from, op.n);
				break;
			case OP_PATCH:
				element = child_at(base, op.from);
				build_add(build, NULL, merge_node(&element, &op.node));
				break;
			case OP_INSERT:
				build_add(build, NULL, node_value(&op.node));
				break;
		}
	}
	return build_value(build);
}

/* base: NULL if there is none. */
static Value
merge_node(JsonNode *base, JsonNode *patch)
{
	JsonNode	value;

	check_stack_depth();
	switch (patch_kind(patch, &value))
	{
		case PATCH_SET:
			return node_value(&value);
		case PATCH_REMOVE:
			malformed("Only members of objects can be removed by [].");
		case PATCH_OBJECT:
			if (base == NULL || !is_object(base))
				misfit("It has the patch of an object for something else.");
			return merge_object(base, patch);
		case PATCH_ARRAY:
			if (base == NULL || !is_array(base))
				misfit("It has the patch of an array for something else.");
			return merge_array(base, patch);
	}
	pg_unreachable();
}

/* ----------------------------------------------------------------- compose */

static Value
compose_object(JsonNode *first, JsonNode *second)
{
	Build	   *build = build_new(true);
	MemberWalk	walk;

	walk_begin(&walk, first, second);
	while (walk_next(&walk))
	{
		if (walk.a.here && walk.b.here)
			build_add(build, walk.key, compose_node(&walk.a.value, &walk.b.value));
		else
			build_add(build, walk.key,
					  node_value(walk.a.here ? &walk.a.value : &walk.b.value));
	}
	return build_value(build);
}

/* Which of the operations makes the element at a place. */
static uint32
find_op(Op *ops, uint32 n, int64 to)
{
	uint32		low = 0;
	uint32		high = n;

	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (ops[middle].to + ops[middle].n <= to)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == n)
		misfit("The array that the first patch makes is too short for the second.");
	return low;
}

/*
 * The second patch may copy all that the first one makes time and again: stop
 * where that cannot be written anyway.  Padding is less than the JEntries that
 * count with it, so what is counted is less than twice what will be there.
 */
static void
check_size(Build *build)
{
	if (build->bytes > 2 * (uint64) JENTRY_OFFLENMASK)
		too_large();
}

/* A copy of elements that the first patch makes, in terms of what it makes them from. */
static void
compose_copy(OpWriter *out, Op *made, uint32 nmade, int64 from, int64 n)
{
	for (uint32 i = find_op(made, nmade, from); n > 0; i++)
	{
		int64		skip;
		int64		take;

		CHECK_FOR_INTERRUPTS();
		check_size(out->build);
		if (i == nmade)
			misfit("The array that the first patch makes is too short for the second.");
		skip = from - made[i].to;
		take = Min(n, made[i].n - skip);
		switch (made[i].kind)
		{
			case OP_COPY:
				ops_copy(out, made[i].from + skip, take);
				break;
			case OP_PATCH:
				ops_patch(out, made[i].from, node_value(&made[i].node));
				break;
			case OP_INSERT:
				ops_insert(out, node_value(&made[i].node));
				break;
		}
		from += take;
		n -= take;
	}
}

static void
compose_element(OpWriter *out, Op *made, int64 at, JsonNode *patch)
{
	switch (made->kind)
	{
		case OP_COPY:
			ops_patch(out, made->from + at - made->to, node_value(patch));
			break;
		case OP_PATCH:
			ops_patch(out, made->from, compose_node(&made->node, patch));
			break;
		case OP_INSERT:
			ops_insert(out, merge_node(&made->node, patch));
			break;
	}
}

static Value
compose_array(JsonNode *first, JsonNode *second)
{
	Op		   *made = alloc_array(count_of(first), sizeof(Op));
	uint32		nmade = 0;
	OpReader	reader;
	Op			op;
	OpWriter	out;

	ops_read(&reader, first);
	while (ops_next(&reader, &made[nmade]))
		nmade++;
	ops_begin(&out);
	ops_read(&reader, second);
	while (ops_next(&reader, &op))
	{
		switch (op.kind)
		{
			case OP_COPY:
				compose_copy(&out, made, nmade, op.from, op.n);
				break;
			case OP_PATCH:
				compose_element(&out, &made[find_op(made, nmade, op.from)], op.from, &op.node);
				break;
			case OP_INSERT:
				ops_insert(&out, node_value(&op.node));
				break;
		}
	}
	return ops_end(&out);
}

/* Removing stays, though the first patch may have added: base is not known. */
static Value
compose_node(JsonNode *first, JsonNode *second)
{
	JsonNode	value;
	PatchKind	first_kind;
	PatchKind	second_kind;

	check_stack_depth();
	second_kind = patch_kind(second, &value);
	if (second_kind == PATCH_SET || second_kind == PATCH_REMOVE)
		return node_value(second);
	first_kind = patch_kind(first, &value);
	if (first_kind == PATCH_SET)
		return set_value(merge_node(&value, second), false);
	if (first_kind == PATCH_REMOVE)
		misfit("The second patch changes what the first removes.");
	if (first_kind != second_kind)
		misfit("One patch is of an object, the other of an array.");
	return first_kind == PATCH_OBJECT ? compose_object(first, second) :
		compose_array(first, second);
}

/* ------------------------------------------------------------------ rebase
 *
 * A patch says what becomes of the document that it was made for, whole or in
 * part, and by places in arrays.  What two sides have made of one document is
 * put together by names of members instead.
 */

/* The member of a key, asked for in the order of keys; NULL: there is none. */
static JsonNode *
side_find(Side *side, const JsonNode *key)
{
	while (side->more && key_compare(&side->key, key) < 0)
		side_next(side);
	return side->more && key_compare(&side->key, key) == 0 ? &side->value : NULL;
}

static bool
same_member(const JsonNode *a, const JsonNode *b)
{
	return a == NULL || b == NULL ? a == b : node_equal(a, b);
}

/* base: no object, or NULL, where both sides have made one. */
static Value
rebase_object(JsonNode *base, JsonNode *changed, JsonNode *now, int depth)
{
	Build	   *build = build_new(true);
	Side		before = {0};
	MemberWalk	walk;

	if (base != NULL && is_object(base))
	{
		side_begin(&before, base);
		side_next(&before);
	}
	walk_begin(&walk, changed, now);
	while (walk_next(&walk))
	{
		JsonNode   *old = side_find(&before, walk.key);
		JsonNode   *mine = walk.a.here ? &walk.a.value : NULL;
		JsonNode   *theirs = walk.b.here ? &walk.b.value : NULL;

		if (same_member(old, mine))
			mine = theirs;
		else if (depth < MAX_DEPTH && mine != NULL && theirs != NULL &&
				 is_object(mine) && is_object(theirs))
		{
			build_add(build, walk.key, rebase_object(old, mine, theirs, depth + 1));
			continue;
		}
		if (mine != NULL)
			build_add(build, walk.key, node_value(mine));
	}
	return build_value(build);
}

/* ------------------------------------------------------------- entry points
 *
 * Results are in the current memory context, and nothing else stays there.
 */

static MemoryContext
work_begin(void)
{
	return MemoryContextSwitchTo(AllocSetContextCreate(CurrentMemoryContext, "dgen jsonb patch",
													   ALLOCSET_DEFAULT_SIZES));
}

static Jsonb *
work_end(Value value, MemoryContext caller)
{
	Jsonb	   *result = value_to_jsonb(value, caller);

	MemoryContextDelete(MemoryContextSwitchTo(caller));
	return result;
}

/* The patch from base to new; NULL if they are the same bytes. */
Jsonb *
dgen_jsonb_diff(Jsonb *base, Jsonb *new)
{
	MemoryContext caller;
	JsonNode	base_node;
	JsonNode	new_node;
	Value		patch;

	if (VARSIZE(base) == VARSIZE(new) && memcmp(base, new, VARSIZE(new)) == 0)
		return NULL;
	caller = work_begin();
	base_node = root_node(base);
	new_node = root_node(new);
	if (!diff_node(&base_node, &new_node, 0, &patch))
		patch = set_value(node_value(&new_node), false);
	return work_end(patch, caller);
}

/* The document that a patch makes of base. */
Jsonb *
dgen_jsonb_merge(Jsonb *base, Jsonb *patch)
{
	MemoryContext caller = work_begin();
	JsonNode	base_node = root_node(base);
	JsonNode	patch_node = root_node(patch);

	return work_end(merge_node(&base_node, &patch_node), caller);
}

/* One patch that does what the first does and then the second. */
Jsonb *
dgen_jsonb_compose(Jsonb *first, Jsonb *second)
{
	MemoryContext caller = work_begin();
	JsonNode	first_node = root_node(first);
	JsonNode	second_node = root_node(second);
	JsonNode	value;

	if (patch_kind(&first_node, &value) == PATCH_REMOVE ||
		patch_kind(&second_node, &value) == PATCH_REMOVE)
		malformed("Only members of objects can be removed by [].");
	return work_end(compose_node(&first_node, &second_node), caller);
}

/*
 * What somebody has made of base (changed), on top of what others have made of
 * it meanwhile (now): each member of an object is as he left it if he changed
 * it, and else as it is now.  Anything else, an array for example, is one
 * value.  Returns now itself if he changed nothing.
 */
Jsonb *
dgen_jsonb_rebase(Jsonb *base, Jsonb *changed, Jsonb *now)
{
	MemoryContext caller;
	JsonNode	base_node = root_node(base);
	JsonNode	changed_node = root_node(changed);
	JsonNode	now_node = root_node(now);

	if (node_equal(&base_node, &changed_node))
		return now;
	if (!is_object(&changed_node) || !is_object(&now_node))
		return changed;
	caller = work_begin();
	return work_end(rebase_object(&base_node, &changed_node, &now_node, 0), caller);
}

PG_FUNCTION_INFO_V1(dgen_sql_jsonb_diff);

Datum
dgen_sql_jsonb_diff(PG_FUNCTION_ARGS)
{
	Jsonb	   *patch = dgen_jsonb_diff(PG_GETARG_JSONB_P(0), PG_GETARG_JSONB_P(1));

	if (patch == NULL)
		PG_RETURN_NULL();
	PG_RETURN_JSONB_P(patch);
}

PG_FUNCTION_INFO_V1(dgen_sql_jsonb_merge);

Datum
dgen_sql_jsonb_merge(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(dgen_jsonb_merge(PG_GETARG_JSONB_P(0), PG_GETARG_JSONB_P(1)));
}

PG_FUNCTION_INFO_V1(dgen_sql_jsonb_compose);

Datum
dgen_sql_jsonb_compose(PG_FUNCTION_ARGS)
{
	PG_RETURN_JSONB_P(dgen_jsonb_compose(PG_GETARG_JSONB_P(0), PG_GETARG_JSONB_P(1)));
}
