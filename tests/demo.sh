#!/bin/sh
# What the tools do, on a loop device (as root) or on an image file. Everything it makes is in
# demo/, which is made anew.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
bin=$top/target/release
demo=$top/demo
rm -rf "$demo"
mkdir -p "$demo"

say() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    "$@"
}

truncate -s 1G "$demo/cache.img"
truncate -s 1G "$demo/backing.img"
cache=$demo/cache.img
backing=$demo/backing.img
loops=
detach() {
    for loop in $loops; do
        losetup --detach "$loop" || true
    done
}
trap detach EXIT
# Past the page cache where the file system can: the bench is to measure a device, not memory.
attach() {
    losetup --find --show --direct-io=on "$1" 2>/dev/null || losetup --find --show "$1" 2>/dev/null
}
if [ "$(id -u)" = 0 ] && cache=$(attach "$demo/cache.img"); then
    loops=$cache
    backing=$(attach "$demo/backing.img")
    loops="$loops $backing"
else
    cache=$demo/cache.img
    echo "no root, or no loop devices: the demo works on image files"
fi

say "$bin/bcachectl" make --cache "$cache" --bdev "$backing" --bucket 256k --label demo
say "$bin/bcachectl" show "$cache"
say "$bin/bcachectl" show "$backing"

# The bench makes a cache set of its own, and leaves it to be looked at.
say "$bin/bcache-bench" device "$cache" --keep --wipe-bcache --yes --duration 10s --writers 2 \
    --block-sizes 4k=70,64k=30 --read-share 20 --access zipf --bucket 256k \
    --export json="$demo/report.json" --export svg="$demo/latency.svg"
say "$bin/bcachectl" check "$cache"
say "$bin/bcachectl" show --prios --sort gen --limit 10 "$cache"
printf '\nreport: %s\npicture: %s\n' "$demo/report.json" "$demo/latency.svg"
