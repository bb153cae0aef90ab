/*
 * Preloaded into a server: malloc() and realloc() fail when a test says so.
 *
 * The file that DGEN_NO_MEMORY names says in which processes (those whose
 * bgw_type is "type", or the one with the pid), after how many allocations, and
 * how many in a row.  Without the file nothing fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct Control
{
	char		type[32];
	int			pid;
	int			left;			/* allocations until the first failure; counts down */
	int			times;			/* failures in a row */
	int			failed;			/* those that were */
} Control;

#define BGW_MAXLEN 96			/* bgw_type comes after bgw_name */

extern char *MyBgworkerEntry __attribute__((weak));
extern void *__libc_malloc(size_t size);
extern void *__libc_realloc(void *p, size_t size);

static Control *control = NULL;

__attribute__((constructor))
static void
attach(void)
{
	const char *path = getenv("DGEN_NO_MEMORY");
	int			fd = path ? open(path, O_RDWR) : -1;
	void	   *place;

	if (fd < 0)
		return;
	place = mmap(NULL, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (place != MAP_FAILED)
		control = place;
}

static int
is_concerned(void)
{
	if (control->pid != 0)
		return control->pid == getpid();
	return control->type[0] != '\0' && &MyBgworkerEntry != NULL && MyBgworkerEntry != NULL &&
		strcmp(MyBgworkerEntry + BGW_MAXLEN, control->type) == 0;
}

static int
must_fail(void)
{
	int			left;

	if (control == NULL || !is_concerned())
		return 0;
	left = __atomic_fetch_sub(&control->left, 1, __ATOMIC_SEQ_CST);
	if (left > 0 || left <= -control->times)
		return 0;
	__atomic_fetch_add(&control->failed, 1, __ATOMIC_SEQ_CST);
	errno = ENOMEM;
	return 1;
}

void *
malloc(size_t size)
{
	return must_fail() ? NULL : __libc_malloc(size);
}

void *
realloc(void *p, size_t size)
{
	return must_fail() ? NULL : __libc_realloc(p, size);
}
