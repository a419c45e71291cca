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

# One guest more than there are processors: while one waits, the others compute. The suites run in four
# rows, so that others go on where one waits for its last guest. Those whose guests wait most come
# first, while there are other tests that compute. Within a row, cargo goes by name.
threads=$(($(nproc) + 1))
mkdir "$folder/guests"
# kernels ROW SUITE...
kernels() {
    row=$1
    shift
    for suite; do
        set -- "$@" --test "${suite}_kernel"
        shift
    done
    status=0
    BCACHE_TEST_GUESTS=$folder/guests tests "$@" -- --test-threads="$threads" || status=$?
    echo "$status" >"$folder/status-$row"
}
rows=0
listed=
# row SUITE...: runs them beside all else.
row() {
    rows=$((rows + 1))
    listed="$listed $*"
    kernels "$rows" "$@" >"$folder/log-$rows" &
}
row reader replay running
row invalidate repair
row kinds make scan serve verdict writeback
# The others: words, one a suite.
# shellcheck disable=SC2046
row $(
    for suite in tests/suite/*_kernel.rs; do
        suite=$(basename "$suite" _kernel.rs)
        case "$listed " in *" $suite "*) ;; *) echo "$suite" ;; esac
    done
)
{
    status=0
    BCACHE_TEST_KERNELS=beside tests --lib --bins --tests || status=$?
    echo "$status" >"$folder/status"
} | tee "$folder/log"
echo
echo "The tests that boot kernels:"
for row in $(seq "$rows"); do
    # From the beginning, and until they have ended.
    tail -n +1 -f "$folder/log-$row" &
    tail=$!
    while [ ! -e "$folder/status-$row" ]; do
        sleep 1
    done
    sleep 2
    kill "$tail"
    cat "$folder/log-$row" >>"$folder/log"
done
wait
status=0
# A suite that runs in no row would go unnoticed.
left=$(grep -c '^running beside the other tests' "$folder/log" || true)
ran=$(cat "$folder"/log-* | grep -c '^ *Running suite/' || true)
if [ "$left" != "$ran" ]; then
    echo "run.sh: $left suites that boot kernels were left for later, $ran ran" >&2
    status=1
fi
for file in "$folder/status" "$folder"/status-*; do
    [ "$(cat "$file")" = 0 ] || status=$(cat "$file")
done

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
    # And each in a line, for whoever sees the end of the log alone.
    printf '\nIn short:\n'
    awk '
        /^---- .* ----$/ { name = $2; next }
        /^thread .* panicked at/ { next }
        name && NF { print name ": " substr($0, 1, 300); name = "" }
    ' "$folder/log"
    grep '^test result: FAILED' "$folder/log" || true
fi
exit "$status"
