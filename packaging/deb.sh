#!/bin/sh
# Builds the Debian package from what `make` built:
# target/debian/bcachectl_VERSION_ARCHITECTURE.deb, in the place of bcache-tools.
# It runs on the release that it was built on and on later ones. DEBFULLNAME and
# DEBEMAIL name its maintainer; else that is the author of the last commit.
set -eu
cd "$(dirname "$0")/.."

package=bcachectl
out=target/debian
root=$out/root
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
architecture=$(dpkg --print-architecture)
maintainer="${DEBFULLNAME:-$(git log -1 --format=%an)} <${DEBEMAIL:-$(git log -1 --format=%ae)}>"
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH

rm -rf "$out"
mkdir -p "$root/DEBIAN" "$out/work/debian"
# What is built is built: Cargo has nothing to do.
make -s install CARGO=true PREFIX=/usr DESTDIR="$root"
for program in bcachectl bcache-bench; do
    strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/sbin/$program"
done
gzip -9n "$root"/usr/share/man/man?/*.?

doc=$root/usr/share/doc/$package
mkdir -p "$doc"
install -m 644 packaging/debian/copyright "$doc/copyright"
gzip -9n >"$doc/changelog.gz" <<END
$package ($version) unstable; urgency=medium

  * Built from source; CHANGELOG.md there says what is new.

 -- $maintainer  $(date -Ru -d "@$SOURCE_DATE_EPOCH")
END
find "$root/usr" -type d -exec chmod 755 {} +
find "$root/usr" -type f ! -perm -100 -exec chmod 644 {} +

# The libraries that the programs need, and since which version.
printf 'Source: %s\n\nPackage: %s\nArchitecture: any\n' "$package" "$package" \
    >"$out/work/debian/control"
depends=$(cd "$out/work" &&
    dpkg-shlibdeps -O ../root/usr/sbin/bcachectl ../root/usr/sbin/bcache-bench |
    sed -n 's/^shlibs:Depends=//p')

install -m 644 packaging/debian/triggers "$root/DEBIAN/triggers"
cat - packaging/debian/control >"$root/DEBIAN/control" <<END
Package: $package
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -k -s --apparent-size "$root/usr" | cut -f 1)
Depends: $depends
END
(cd "$root" && find usr -type f | LC_ALL=C sort | xargs md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root"/DEBIAN/*

deb=$out/${package}_${version}_$architecture.deb
dpkg-deb --root-owner-group --build -Zxz "$root" "$deb" >/dev/null
rm -rf "$root" "$out/work"
echo "$deb"
