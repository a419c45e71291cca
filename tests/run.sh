#!/bin/sh
# Runs all tests of the workspace. Those that boot kernels run beside the others:
# a guest waits more than it computes. When some fail, what each said
# comes again after everything else, cut short, where whoever reads a long log begins.
set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# CARGO may have arguments, as in "cargo +nightly".
# shellcheck disable=SC2086
tests() {
    ${CARGO:-cargo} test --workspace --no-fail-fast "$@" 2>&1
}

# All is built first, so that neither side waits for the other's compiler.
tests --lib --bins --tests --no-run

# The suites that boot kernels run two at a time, those that take longest first: while one waits for its
# last guest, the other computes.
slowest="reader_kernel advice_kernel running_kernel invalidate_kernel replay_kernel repair_kernel"
suites=$(for suite in $slowest tests/suite/*kernel.rs; do basename "$suite" .rs; done | awk '!seen[$0]++')
# shellcheck disable=SC2016
printf '%s\n' "$suites" | xargs -P 2 -n 1 sh -c '
    status=0
    ${CARGO:-cargo} test --workspace --no-fail-fast --test "$1" -- --test-threads="$(nproc)" \
        >"$0/log-$1" 2>&1 || status=$?
    echo "$status" >"$0/status-$1"' "$folder" &
runner=$!

{
    status=0
    BCACHE_TEST_KERNELS=beside tests --lib --bins --tests || status=$?
    echo "$status" >"$folder/status"
} | tee "$folder/log"
echo
echo "The tests that boot kernels:"
status=$(cat "$folder/status")
for suite in $suites; do
    while [ ! -e "$folder/status-$suite" ] && kill -0 "$runner" 2>/dev/null; do
        sleep 1
    done
    tee -a "$folder/log" <"$folder/log-$suite"
    of_suite=$(cat "$folder/status-$suite")
    [ "$of_suite" = 0 ] || status=$of_suite
done
wait

if [ "$status" != 0 ]; then
    printf '\nWhat failed:\n'
    # "---- NAME ----" or "---- NAME stdout ----", what it said, and at last "failures:" with the names.
    # A guest's log is long: of it the beginning, where the reason stands, and the end.
    awk -v most=12 '
        function show(   line) {
            for (line = 1; line <= lines; line++)
                if (line <= most || line > lines - most)
                    print kept[line]
                else if (line == most + 1)
                    print "    [...]"
            lines = 0
        }
        /^---- .* ----$/ { show(); print; within = 1; skip = 0; next }
        /^stack backtrace:$/ { skip = 1 }
        /^failures:$/ { show(); within = 0 }
        within && NF && !skip { kept[++lines] = $0 }
        /^note: / { skip = 0 }
        /^test result: FAILED/ { print }
        END { show() }
    ' "$folder/log"
fi
exit "$status"
