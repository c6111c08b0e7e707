#!/bin/sh
# OmenDB @VERSION@ for Linux on x86-64, in one file: this script, and behind it the program as an archive.
#
# The first start unpacks the archive, later ones find it unpacked. It needs sh, tar, gzip and coreutils, which every Debian
# has, and no Python. OMENDB_UNPACK_DIR names the place; without it ~/.cache/omendb is taken, and where that cannot be
# written to, a directory of the user's own below TMPDIR or /tmp.
set -eu

version=@VERSION@
digest=@DIGEST@
start=@START@

own() {
    # A directory of this user that nobody else can write to, and that programs can be run from. What is in it is run.
    mkdir -p -m 700 "$1" 2>/dev/null && [ -O "$1" ] && [ ! -L "$1" ] && [ -w "$1" ] &&
        [ -z "$(find "$1" -maxdepth 0 -perm /022)" ]
}

unpack() {
    # Under another name, synced, then renamed: a directory of the final name is complete, whoever is interrupted.
    find "$1" -maxdepth 1 -name '.new.*' -mmin +60 -exec rm -rf {} +
    new=$(mktemp -d "$1/.new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    echo "omendb $version unpacks itself into $1/$version-$digest; this is done once." >&2
    tail -c "+$start" "$0" | tar -xz -C "$new" -f - || {
        echo "omendb: cannot unpack: no space in $1, or $0 is not whole" >&2
        exit 1
    }
    sync -f "$new"
    # Another start may have been faster: then there is nothing to do.
    mv -T "$new/omendb" "$1/$version-$digest" 2>/dev/null || [ -x "$1/$version-$digest/omendb" ]
    rm -rf "$new"
    trap - EXIT HUP INT TERM
}

for place in "${OMENDB_UNPACK_DIR:-}" "${XDG_CACHE_HOME:-${HOME:-}/.cache}/omendb" "${TMPDIR:-/tmp}/omendb-$(id -u)"; do
    case $place in
    '' | /.cache/omendb) continue ;; # not given; no home
    esac
    program=$place/$version-$digest/omendb
    own "$place" || continue
    [ -x "$program" ] || unpack "$place"
    # False on a file system that is mounted noexec.
    [ -x "$program" ] && exec "$program" "$@"
done
echo "omendb: no place to unpack to; OMENDB_UNPACK_DIR may name a directory of this user's own" >&2
exit 1
