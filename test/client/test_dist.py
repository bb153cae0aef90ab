"""The release archive: what PGXN wants in META.json, and that the archive builds."""

import json
import os
import re
import shutil
import subprocess
import zipfile

import pytest

from build import TOP, Build, clean_environment

# the PGXN Meta Spec, version 1.0.0: what a distribution may say of itself.  A
# rule is a function of the value, or the rules of the keys of a map: "*" of all others
LICENSES = {"agpl_3", "apache_1_1", "apache_2_0", "artistic_1", "artistic_2", "bsd", "freebsd",
            "gfdl_1_2", "gfdl_1_3", "gpl_1", "gpl_2", "gpl_3", "lgpl_2_1", "lgpl_3_0", "mit",
            "mozilla_1_0", "mozilla_1_1", "openssl", "perl_5", "postgresql", "qpl_1_0", "ssleay",
            "sun", "zlib", "open_source", "restricted", "unrestricted", "unknown"}
SEMVER = r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+)?"


def is_string(value):
    return isinstance(value, str) and value != ""


def is_term(value):
    return is_string(value) and re.fullmatch(r"[^\s/\\\x00-\x1f]{2,}", value)


def is_tag(value):
    return is_string(value) and re.fullmatch(r"[^/\\\x00-\x1f]{1,256}", value)


def is_version(value):
    return is_string(value) and re.fullmatch(SEMVER, value)


def is_range(value):
    return value == 0 or is_string(value) and all(
        re.fullmatch(r"\s*(<=|>=|==|!=|<|>)?\s*(0|%s)\s*" % SEMVER, part) for part in value.split(","))


def is_file(value):
    return is_string(value) and os.path.isfile(os.path.join(TOP, value)) and not os.path.isabs(value)


def list_of(rule):
    return lambda value: rule(value) or isinstance(value, list) and value and all(map(rule, value))


RULES = {
    "name!": is_term, "version!": is_version, "abstract!": is_string, "maintainer!": list_of(is_string),
    "license!": list_of(lambda value: is_string(value) and value in LICENSES),
    "provides!": {"*": {"file!": is_file, "version!": is_version, "abstract": is_string, "docfile": is_file}},
    "meta-spec!": {"version!": lambda value: value == "1.0.0",
                   "url": lambda value: value == "https://pgxn.org/meta/spec.txt"},
    "description": is_string, "generated_by": is_string, "tags": list_of(is_tag),
    "release_status": lambda value: value in ("stable", "testing", "unstable"),
    "prereqs": {phase: {relation: {"*": is_range} for relation in ("requires", "recommends", "suggests", "conflicts")}
                for phase in ("configure", "build", "test", "runtime", "develop")},
}


def faults(rules, value, place="META.json"):
    if not isinstance(rules, dict):
        return [] if rules(value) else ["%s: %r" % (place, value)]
    if not isinstance(value, dict):
        return ["%s is no map" % place]
    found = ["%s has no %s" % (place, key[:-1]) for key in rules if key.endswith("!") and key[:-1] not in value]
    for key, v in value.items():
        rule = rules.get(key) or rules.get(key + "!") or rules.get("*")
        if rule is None:
            found.append("%s: %s is not known" % (place, key))
        else:
            found += faults(rule, v, "%s.%s" % (place, key))
    return found


@pytest.fixture
def meta():
    with open(os.path.join(TOP, "META.json")) as f:
        return json.load(f)


def test_meta(meta):
    assert faults(RULES, meta) == []
    with open(os.path.join(TOP, "dgen.control")) as f:
        version = re.search(r"^default_version = '(.*)'", f.read(), re.M).group(1)
    assert meta["name"] == "dgen" and set(meta["provides"]) == {"dgen"}
    assert meta["version"] == meta["provides"]["dgen"]["version"] == version
    with open(os.path.join(TOP, "CHANGELOG.md")) as f:
        assert re.search(r"^## %s\b" % re.escape(version), f.read(), re.M)


@pytest.mark.parametrize("broken", [
    {"version": "0.1"}, {"license": "postgres"}, {"release_status": "fresh"}, {"tags": ["a/b"]}, {"maintainer": None},
    {"provides": {"dgen": {"file": "missing.sql", "version": "0.1.0"}}}, {"provides": {"dgen": {}}},
    {"prereqs": {"run": {}}}, {"prereqs": {"runtime": {"requires": {"PostgreSQL": "15"}}}}, {"homepage": "nowhere"}])
def test_meta_is_checked(meta, broken):
    assert faults(RULES, dict(meta, **broken)) != []


def make(*arguments, cwd=TOP):
    done = subprocess.run(["make", *arguments], cwd=cwd, env=clean_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture
def unpacked(meta, tmp_path):
    """What make dist has made: one directory, named as PGXN wants."""
    if shutil.which("git") is None or subprocess.run(
            ["git", "-C", TOP, "rev-parse", "HEAD"], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("not a git checkout")
    name = "%s-%s" % (meta["name"], meta["version"])
    make("dist", "DISTDIR=%s" % tmp_path)
    with zipfile.ZipFile(tmp_path / (name + ".zip")) as z:
        assert {n.split("/")[0] for n in z.namelist()} == {name}
        z.extractall(tmp_path)
    return tmp_path / name


def test_archive(unpacked):
    left = [str(p) for p in unpacked.rglob("*") if p.suffix in (".o", ".so", ".bc", ".pyc") or p.name == "build"]
    assert left == []
    for wanted in ("META.json", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "dgen.control",
                   "doc/reference.md", "doc/tutorial.md"):
        assert (unpacked / wanted).is_file(), wanted


@pytest.mark.long
def test_archive_builds(meta, unpacked, tmp_path):
    """By make && make install, and nothing else."""
    config = "PG_CONFIG=%s" % Build.current().pg_config
    make("-j2", config, cwd=unpacked)
    make(config, "install", "DESTDIR=%s" % (tmp_path / "root"), cwd=unpacked)
    installed = {f for _, _, files in os.walk(tmp_path / "root") for f in files}
    assert {"dgen.so", "dgen.control", "dgen--%s.sql" % meta["version"]} <= installed
