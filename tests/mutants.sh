#!/bin/sh
# Changes the code in one place after the other and looks whether a test notices,
# with cargo-mutants. The places are those of the allocator, the formats, the
# reader and the operations of bcache-core, or of the files and folders (below
# crates/bcache-core/src) that are named on the command line.
#
# A run is bounded: MUTANTS_SHARD (default 0/16) says which share of the changes
# is tried, as K/N; MUTANTS_SECONDS (default 3600) ends it. MUTANTS_TESTS says
# which tests have to notice (default: "--lib --tests", all of bcache-core). What
# was tried, and what no test noticed, is in .cache/mutants/mutants.out.
set -eu
cd "$(dirname "$0")/.."

cache=$PWD/.cache
root=${BCACHE_TEST_CACHE:-$cache}/cargo-mutants
tool=$root/bin/cargo-mutants
if [ ! -x "$tool" ]; then
    ${CARGO:-cargo} install --locked --root "$root" cargo-mutants
fi
if [ $# -eq 0 ]; then
    set -- allocator layout cache_set ops
fi
# Each becomes "--file GLOB".
for what; do
    case $what in
    *.rs) glob=crates/bcache-core/src/$what ;;
    *) glob="crates/bcache-core/src/$what/**/*.rs" ;;
    esac
    set -- "$@" --file "$glob"
    shift
done

mkdir -p "$cache/mutants"
# A change is compiled for each run of the tests: that is what takes the time.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0
# So few events do not have everything in them that the test asks for, unless the seed is known to.
export DIFF_EVENTS="${DIFF_EVENTS:-100000}" DIFF_SEED="${DIFF_SEED:-889417364879642854}"
status=0
# Tests that boot kernels or need root are in other packages: these are those that
# a change in core has to fail. What a change makes hang ends after two minutes.
# shellcheck disable=SC2086
timeout "${MUTANTS_SECONDS:-3600}" "$tool" mutants --dir . --gitignore true --package bcache-core \
    --test-package bcache-core --shard "${MUTANTS_SHARD:-0/16}" --output "$cache/mutants" \
    --timeout 120 --no-shuffle --exclude '**/testkit/**' --exclude '**/testkit.rs' \
    --exclude '**/vector.rs' "$@" -- ${MUTANTS_TESTS:---lib --tests} || status=$?
for list in missed timeout; do
    file=$cache/mutants/mutants.out/$list.txt
    [ ! -s "$file" ] || { printf '\n%s:\n' "$list"; cat "$file"; }
done
# 2: some were missed; 3: some timed out; 124: the time was over.
exit "$status"
