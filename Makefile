# dgen: GenServer for PostgreSQL
#
#   make, make install     build and install (PG_CONFIG=... selects the server)
#   make check             all tests, in private throwaway clusters
#   make check-long        the tests that take long
#   make check-clients     the tests of clients in Node, Ruby and Java, whose packages it installs
#   make check-versions    all tests on PostgreSQL 17 and 18 (root; downloads two Debians)
#   make check-coverage    all tests, and which lines and errors they reach
#   make check-sanitizers  all tests with AddressSanitizer and UndefinedBehaviorSanitizer
#   make check-valgrind    a few suites below valgrind
#   make demo, demo-stop   a small ledger on a private throwaway cluster
#   make bench             the benchmarks, in private throwaway clusters
#   make bench-plots       how cost grows, measured and drawn into doc/plots
#   make dist              the release archive, into DISTDIR
#   make release-script    keeps this version's install script, which never changes from then on

EXTENSION  = dgen
MODULE_big = dgen

# Where the sources are: here, or for a build outside the checkout VPATH, or
# where this file is.
top := $(or $(VPATH),$(patsubst %/,%,$(dir $(firstword $(MAKEFILE_LIST)))))

EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(top)/dgen.control)

# Goals that must work before PostgreSQL is installed
OWN_GOALS = check check-long check-clients check-versions check-coverage check-sanitizers check-valgrind demo demo-stop bench bench-plots dist release-script

ifneq (,$(filter $(OWN_GOALS),$(MAKECMDGOALS)))

.PHONY: $(MAKECMDGOALS)

check:
	@$(top)/test/run

check-long:
	@$(top)/test/run long

check-clients:
	@$(top)/test/run clients

check-versions:
	@$(top)/test/versions

check-coverage check-sanitizers check-valgrind:
	@$(top)/test/instrumented $(@:check-%=%)

demo:
	@$(top)/examples/ledger/demo start

demo-stop:
	@$(top)/examples/ledger/demo stop

bench:
	@$(top)/bench/run

bench-plots:
	@$(top)/bench/run plots

dist:
	git -C $(top) archive --format zip --prefix=dgen-$(EXTVERSION)/ \
		-o $(abspath $(or $(DISTDIR),.))/dgen-$(EXTVERSION).zip HEAD

release-script:
	@test ! -e $(top)/sql/released/dgen--$(EXTVERSION).sql || \
		{ echo "version $(EXTVERSION) is released already" >&2; exit 1; }
	@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) sql/dgen--$(EXTVERSION).sql
	@mkdir -p $(top)/sql/released
	cp sql/dgen--$(EXTVERSION).sql $(top)/sql/released/

# others named in the same command
$(sort $(filter-out $(OWN_GOALS),$(MAKECMDGOALS))):
	@$(MAKE) -f $(firstword $(MAKEFILE_LIST)) $@

else

OBJS = $(sort $(patsubst $(top)/%.c,%.o,$(wildcard $(top)/src/*.c)))

# The install script is made of these, in this order
SQL_PARTS = header tables patch module attributes message timer request server external registry supervisor history lifecycle views migrate trace statistics stat why audit transfer grants

DATA_built  = sql/dgen--$(EXTVERSION).sql
# Scripts that lead from one version to the next, and those of earlier versions
DATA        = $(patsubst $(top)/%,%,$(wildcard $(top)/sql/dgen--*--*.sql) \
                $(filter-out %/dgen--$(EXTVERSION).sql,$(wildcard $(top)/sql/released/dgen--*.sql)))
EXTRA_CLEAN = src/*.o src/*.bc

PG_CPPFLAGS = -I$(top)/src -DDGEN_VERSION='"$(EXTVERSION)"'
PG_CFLAGS   = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
              -Wno-missing-field-initializers
ifdef WERROR
PG_CFLAGS  += -Werror
endif

# Nothing here gains from being inlined into queries
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq (,$(PGXS))
$(error $(PG_CONFIG) does not run: install the server's development package, or name its pg_config with PG_CONFIG=)
endif
ifneq (.,$(top))
VPATH := $(top)
$(shell mkdir -p src sql)
endif
include $(PGXS)

$(OBJS): $(wildcard $(top)/src/*.h)
src/version.o: $(top)/dgen.control

$(DATA_built): $(patsubst %,$(top)/sql/%.sql,$(SQL_PARTS)) $(top)/dgen.control
	cat $(filter %.sql,$^) > $@.tmp
	mv $@.tmp $@

endif
