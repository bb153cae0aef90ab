/*-------------------------------------------------------------------------
 *
 * hand.c
 *	  Which messages are in hand, remembered across a crash of the server.
 *
 * A handler that brings down a backend brings down the server, and its
 * message is there again after the restart.  So each worker writes the
 * message that it is about to run to a file that is mapped into all
 * processes, and clears that when it is done: two stores in memory, nothing
 * is synced, since it is the operating system that keeps the pages of a file
 * when processes die.  What is found in the file at a start was in hand at a
 * crash (or at an immediate shutdown) and is suspect: workers run it alone,
 * and commit the attempt before they do, until it is forgotten.
 *
 * Suspects are kept in shared memory, where workers look, and in the file as
 * well, so that a second crash before they were tried loses none.
 *
 * Which of several messages in hand is to blame cannot be known.  So those that
 * went down with a worker run one after the other in the whole cluster, each
 * for TRIAL_MS at least: the victims of the first crash are not there at the
 * next one.
 *
 * Losing the file merely loses suspicions; if it cannot be had, dgen runs
 * without.  No locks: a worker writes its own place in the file; suspects are
 * added by the postmaster while it has no children, and removed by storing
 * one aligned word.
 *
 *-------------------------------------------------------------------------
 */
#include "dgen.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog/pg_control.h"
#include "common/controldata_utils.h"
#include "common/file_perm.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/shmem.h"

/* base backups and pg_rewind leave this directory out */
#define HAND_FILE "pg_stat_tmp/dgen_in_hand"
#define HAND_MAGIC UINT64CONST(0x6467656e30303031)

#define TRIAL_MS 1000			/* others wait no longer for one on trial */
#define TRIAL_POLL_MS 20

typedef struct Hand
{
	Oid			database;
	int64		message_id;		/* 0: empty */
} Hand;

typedef struct HandFile
{
	uint64		magic;
	int32		nslots;
	int32		nsuspects;
	Hand		hands[FLEXIBLE_ARRAY_MEMBER];	/* slots, then suspects */
} HandFile;

typedef struct Suspects
{
	pg_atomic_uint32 count;		/* those not forgotten; usually 0 */
	pg_atomic_uint64 trial;		/* until when one runs that others wait for */
	int32		size;
	Hand		hands[FLEXIBLE_ARRAY_MEMBER];
} Suspects;

static HandFile *file = NULL;
static Suspects *suspects = NULL;
static uint64 my_trial = 0;		/* what we put into suspects->trial */

/* crashes may follow each other before a suspect was tried */
static int
suspects_max(void)
{
	return 4 * max_worker_processes;
}

static Size
file_size(void)
{
	return add_size(offsetof(HandFile, hands),
					mul_size(max_worker_processes + suspects_max(), sizeof(Hand)));
}

static Hand *
file_suspects(void)
{
	return file->hands + max_worker_processes;
}

Size
dgen_hand_size(void)
{
	return add_size(offsetof(Suspects, hands),
					mul_size(suspects_max(), sizeof(Hand)));
}

void
dgen_hand_init(void *place, bool found)
{
	suspects = place;
	if (found)
		return;
	memset(place, 0, dgen_hand_size());
	pg_atomic_init_u32(&suspects->count, 0);
	pg_atomic_init_u64(&suspects->trial, 0);
	suspects->size = suspects_max();
}

/* Is this the file that we would write? */
static bool
file_matches(int fd, Size size)
{
	struct stat st;
	HandFile	head;

	return fstat(fd, &st) == 0 && st.st_size == (off_t) size &&
		pg_pread(fd, &head, offsetof(HandFile, hands), 0) == offsetof(HandFile, hands) &&
		head.magic == HAND_MAGIC &&
		head.nslots == max_worker_processes &&
		head.nsuspects == suspects_max();
}

/*
 * Write an empty file, with all its blocks: to touch a mapped page that the
 * file system cannot find room for would be a SIGBUS.
 */
static bool
write_empty_file(int fd, Size size)
{
	HandFile   *empty = palloc0(size);
	bool		ok;

	empty->magic = HAND_MAGIC;
	empty->nslots = max_worker_processes;
	empty->nsuspects = suspects_max();
	errno = 0;
	ok = ftruncate(fd, 0) == 0 && pg_pwrite(fd, empty, size, 0) == (ssize_t) size;
	if (!ok && errno == 0)
		errno = ENOSPC;
	pfree(empty);
	return ok;
}

/* Map the file; false, with errno, if that cannot be done. */
static bool
map_file(void)
{
	Size		size = file_size();
	int			fd = BasicOpenFilePerm(HAND_FILE, O_RDWR | O_CREAT | PG_BINARY,
									   pg_file_create_mode);
	void	   *place = MAP_FAILED;
	int			save_errno;

	if (fd < 0)
		return false;
	if (file_matches(fd, size) || write_empty_file(fd, size))
		place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	save_errno = errno;
	close(fd);
	errno = save_errno;
	if (place == MAP_FAILED)
		return false;
	file = place;
	return true;
}

/* Add to found[] unless it is there, or is nothing. */
static int
add_suspect(Hand *found, int n, const Hand *hand)
{
	if (hand->message_id == 0 || n == suspects_max())
		return n;
	for (int i = 0; i < n; i++)
	{
		if (found[i].database == hand->database &&
			found[i].message_id == hand->message_id)
			return n;
	}
	found[n] = *hand;
	return n + 1;
}

/* Did the server end in order?  Then nothing that was in hand is to blame. */
static bool
was_shut_down(void)
{
	bool		crc_ok;
	ControlFileData *control = get_controlfile(DataDir, &crc_ok);
	bool		result = crc_ok && (control->state == DB_SHUTDOWNED ||
									control->state == DB_SHUTDOWNED_IN_RECOVERY);

	pfree(control);
	return result;
}

/*
 * In the postmaster, at its start and after a crash of any of its children,
 * when none of them is left: what is in the file becomes suspect.
 */
void
dgen_hand_startup(void)
{
	Hand	   *found;
	int			n = 0;

	/* after a crash the postmaster has it still, as all its children will */
	if (file == NULL && !map_file())
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", HAND_FILE),
				 errdetail("A message whose handler crashes the server will not be recognized.")));
		return;
	}

	found = palloc0(mul_size(suspects_max(), sizeof(Hand)));
	if (was_shut_down())
		memset(file->hands, 0, (max_worker_processes + suspects_max()) * sizeof(Hand));
	for (int i = 0; i < suspects_max(); i++)
		n = add_suspect(found, n, &file_suspects()[i]);
	for (int i = 0; i < max_worker_processes; i++)
		n = add_suspect(found, n, &file->hands[i]);

	memcpy(suspects->hands, found, suspects_max() * sizeof(Hand));
	memcpy(file_suspects(), found, suspects_max() * sizeof(Hand));
	memset(file->hands, 0, max_worker_processes * sizeof(Hand));
	pg_atomic_write_u32(&suspects->count, n);
	pfree(found);
}

static volatile Hand *
my_hand(void)
{
	if (file == NULL || dgen_my_slot == NULL)
		return NULL;
	return &file->hands[dgen_my_slot - dgen_shared->slots];
}

/* In a worker, before a handler runs. */
void
dgen_hand_take(int64 message_id)
{
	volatile Hand *hand = my_hand();

	if (hand == NULL)
		return;
	hand->database = MyDatabaseId;
	hand->message_id = message_id;
}

void
dgen_hand_clear(void)
{
	volatile Hand *hand = my_hand();

	if (hand != NULL)
		hand->message_id = 0;
	if (my_trial != 0)
		(void) pg_atomic_compare_exchange_u64(&suspects->trial, &my_trial, 0);
	my_trial = 0;
}

/*
 * May a message that was lost with a worker run now?  The caller runs it alone
 * then, and dgen_hand_clear() ends its trial.  False: another is on trial; *again
 * is when to ask again.
 */
bool
dgen_hand_try(TimestampTz *again)
{
	TimestampTz now = GetCurrentTimestamp();
	uint64		trial = pg_atomic_read_u64(&suspects->trial);

	if (my_trial != 0 && trial == my_trial)
		return true;
	*again = TimestampTzPlusMilliseconds(now, TRIAL_POLL_MS);
	if ((TimestampTz) trial > now)
		return false;
	my_trial = (uint64) TimestampTzPlusMilliseconds(now, TRIAL_MS);
	if (pg_atomic_compare_exchange_u64(&suspects->trial, &trial, my_trial))
		return true;
	my_trial = 0;
	return false;
}

static int
find_suspect(Oid database, int64 message_id)
{
	if (suspects == NULL || pg_atomic_read_u32(&suspects->count) == 0)
		return -1;
	for (int i = 0; i < suspects->size; i++)
	{
		if (suspects->hands[i].message_id == message_id &&
			suspects->hands[i].database == database)
			return i;
	}
	return -1;
}

/* Was it in hand at a crash, and not been tried alone since? */
bool
dgen_hand_suspect(Oid database, int64 message_id)
{
	return message_id != 0 && find_suspect(database, message_id) >= 0;
}

/* By the worker that has tried it: a message is with one worker at a time. */
void
dgen_hand_forget(Oid database, int64 message_id)
{
	int			i = message_id != 0 ? find_suspect(database, message_id) : -1;

	if (i < 0)
		return;
	suspects->hands[i].message_id = 0;
	if (file != NULL)
		file_suspects()[i].message_id = 0;
	pg_atomic_fetch_sub_u32(&suspects->count, 1);
}

/*
 * A worker ends in the middle of a handler while the server goes on: the
 * message becomes suspect as after a crash.  In the exit of a worker.
 */
void
dgen_hand_suspect_add(Oid database, int64 message_id)
{
	LWLockAcquire(&dgen_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < suspects->size; i++)
	{
		Hand	   *hand = &suspects->hands[i];

		if (hand->message_id != 0)
			continue;
		hand->database = database;
		pg_write_barrier();
		hand->message_id = message_id;
		if (file != NULL)
			file_suspects()[i] = *hand;
		pg_atomic_fetch_add_u32(&suspects->count, 1);
		break;
	}
	LWLockRelease(&dgen_shared->lock);
}
