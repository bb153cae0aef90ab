# To be sourced by bash: installs what is missing, with apt, as root or
# through sudo.  Where nothing is missing it does nothing and needs no rights.

# Debian's python3-* modules belong to Debian's python, whatever else is first
# in PATH
PYTHON=/usr/bin/python3
[ -x "$PYTHON" ] || PYTHON=$(command -v python3 || echo /usr/bin/python3)

# need_packages NAME...: prints nothing unless it has to install
need_packages() {
    local missing=() name version log
    for name in "$@"; do
        case $name in
            make) command -v make >/dev/null || missing+=(make) ;;
            compiler)
                command -v gcc >/dev/null || command -v clang >/dev/null || missing+=(gcc)
                [ -e /usr/include/stdio.h ] || missing+=(libc6-dev) ;;
            server) server_is_there || missing+=(server) ;;
            psycopg) "$PYTHON" -c 'import psycopg' 2>/dev/null || missing+=(python3-psycopg) ;;
            pytest) "$PYTHON" -c 'import pytest' 2>/dev/null || missing+=(python3-pytest) ;;
            matplotlib) "$PYTHON" -c 'import matplotlib' 2>/dev/null || missing+=(python3-matplotlib) ;;
            hypothesis) "$PYTHON" -c 'import hypothesis' 2>/dev/null || missing+=(python3-hypothesis) ;;
            networkx) "$PYTHON" -c 'import networkx' 2>/dev/null || missing+=(python3-networkx) ;;
            cron) cron_is_there || ! may_install || missing+=(cron) ;;
            plpython) plpython_is_there || ! may_install || missing+=(plpython) ;;
            psycopg2) "$PYTHON" -c 'import psycopg2' 2>/dev/null || missing+=(python3-psycopg2) ;;
            sqlalchemy) "$PYTHON" -c 'import sqlalchemy' 2>/dev/null || missing+=(python3-sqlalchemy) ;;
            django) "$PYTHON" -c 'import django' 2>/dev/null || missing+=(python3-django) ;;
            aiohttp) "$PYTHON" -c 'import aiohttp' 2>/dev/null || missing+=(python3-aiohttp) ;;
            selenium) "$PYTHON" -c 'import selenium' 2>/dev/null || missing+=(python3-selenium) ;;
            chromium)
                command -v chromium >/dev/null || missing+=(chromium)
                command -v chromedriver >/dev/null || missing+=(chromium-driver) ;;
            exporter) command -v prometheus-postgres-exporter >/dev/null || missing+=(prometheus-postgres-exporter) ;;
            yaml) "$PYTHON" -c 'import yaml' 2>/dev/null || missing+=(python3-yaml) ;;
            pgbouncer) PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null || missing+=(pgbouncer) ;;
            node) command -v node >/dev/null || missing+=(nodejs) ;;
            npm) command -v npm >/dev/null || missing+=(npm) ;;
            activerecord)
                ruby -e 'require "active_record"; require "pg"' 2>/dev/null ||
                    missing+=(ruby-activerecord ruby-pg) ;;
            java) command -v javac >/dev/null || missing+=(default-jdk-headless) ;;
            lcov | bison | flex | valgrind) command -v "$name" >/dev/null || missing+=("$name") ;;
            source-tools) command -v dpkg-source >/dev/null || missing+=(source-tools) ;;
            jdbc) [ -e /usr/share/java/postgresql.jar ] || missing+=(libpostgresql-jdbc-java) ;;
            *) echo "need_packages: $name?" >&2; return 2 ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0

    if [ -n "${PG_CONFIG:-}" ] && [[ " ${missing[*]} " == *" server "* ]]; then
        echo "PG_CONFIG=$PG_CONFIG is no server with its development files" >&2
        return 1
    fi
    if ! command -v apt-get >/dev/null; then
        echo "missing, and there is no apt-get to install it: ${missing[*]}" >&2
        return 1
    fi
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            echo "missing: ${missing[*]}; run this as root, or with sudo that asks no password" >&2
            return 1
        fi
        as_root=(sudo -n)
    fi

    log=$(mktemp /tmp/dgen-apt.XXXXXX)
    echo "installing: ${missing[*]}"
    apt_run() {
        if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 "$@" >>"$log" 2>&1; then
            cat "$log" >&2
            echo "apt-get $* failed" >&2
            return 1
        fi
    }
    apt_run update || return 1
    # the PostgreSQL that this Debian has
    version=$(apt-cache show postgresql | sed -n 's/^Depends:.*postgresql-\([0-9][0-9]*\).*/\1/p' | head -n 1)
    local packages=()
    for name in "${missing[@]}"; do
        case $name in
            source-tools) packages+=(dpkg-dev) ;;
            server) packages+=("postgresql-$version" "postgresql-server-dev-$version") ;;
            cron)
                # not every Debian has it for every server; its test is skipped then
                name=postgresql-$(debian_server || echo "$version")-cron
                ! apt-cache show "$name" >/dev/null 2>&1 || packages+=("$name") ;;
            plpython) packages+=("postgresql-plpython3-$(debian_server || echo "$version")") ;;
            *) packages+=("$name") ;;
        esac
    done
    apt_run install -y --no-install-recommends "${packages[@]}" || return 1
    rm -f "$log"
}

# want_packages NAME...: the same, but what cannot be had is told and done
# without: the tests that want it are skipped
want_packages() {
    may_install || return 0
    need_packages "$@" 2>/dev/null && return
    local name
    for name in "$@"; do
        need_packages "$name" || echo "going on without $name" >&2
    done
}

# A PostgreSQL server with pg_config, PGXS and pg_regress: PG_CONFIG, Debian's
# or the one in PATH
server_is_there() {
    local config
    if [ -n "${PG_CONFIG:-}" ]; then
        server_of "$PG_CONFIG"
        return
    fi
    for config in /usr/lib/postgresql/*/bin/pg_config; do
        server_of "$config" && return 0
    done
    ! command -v apt-get >/dev/null && server_of pg_config
}

server_of() {
    local pgxs
    command -v "$1" >/dev/null || return 1
    pgxs=$("$1" --pgxs 2>/dev/null) || return 1
    [ -x "$("$1" --bindir)/postgres" ] && [ -e "$pgxs" ] &&
        [ -x "${pgxs%/makefiles/pgxs.mk}/test/regress/pg_regress" ]
}

# The version of Debian's server that will be used, if it is Debian's
debian_server() {
    local config=${PG_CONFIG:-$(ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -V | tail -n 1)}
    case $config in
        /usr/lib/postgresql/*) config=${config#/usr/lib/postgresql/}; echo "${config%%/*}" ;;
        *) return 1 ;;
    esac
}

# pg_cron for it, as PL/Python below.
cron_is_there() {
    local version
    if version=$(debian_server); then
        [ -e "/usr/share/postgresql/$version/extension/pg_cron.control" ]
    else
        [ -n "${PG_CONFIG:-}" ]
    fi
}

# PL/Python for that server.  For others it is not looked for: what needs it
# is skipped where it is missing.
plpython_is_there() {
    local version
    if version=$(debian_server); then
        [ -e "/usr/share/postgresql/$version/extension/plpython3u.control" ]
    else
        [ -n "${PG_CONFIG:-}" ]
    fi
}

# DGEN_NO_INSTALL: only with what is there
may_install() {
    [ -z "${DGEN_NO_INSTALL:-}" ] || return 1
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}
