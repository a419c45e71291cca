# Everything here is Cargo's work; this file names what is typed often.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
INSTALL ?= install

sbindir = $(DESTDIR)$(PREFIX)/sbin
libdir = $(DESTDIR)$(PREFIX)/lib
udevdir = $(libdir)/udev
mandir = $(DESTDIR)$(PREFIX)/share/man
sharedir = $(DESTDIR)$(PREFIX)/share
bins = bcachectl bcache-bench
# Names of bcache-tools, all of them bcachectl: commands, and what udev's rules call.
old_names = make-bcache bcache-super-show bcache bcache-status
old_helpers = probe-bcache bcache-register bcache-export-cached

.PHONY: all demo check fuzz mutants soak bench man install deb check-deb check-oldest check-bare check-loaded deps kernels

all:
	$(CARGO) build --release --workspace --bins

# Formats a loop device (an image file without root), shows it, runs the bench
# on it; the results stay in demo/.
demo:
	tests/install-deps.sh build
	$(CARGO) build --release --workspace --bins
	tests/demo.sh

# The whole test suite. The documentation's examples come first, so that the
# last lines are the test runner's own counts. The fuzz targets have a lock file of their
# own, which must be up to date. The allocator's concurrent code is checked on a model
# checker's primitives, which make a build of their own: without any C library (feature
# blkid off), so that bcache-core is known to build without one.
check: deps kernels
	$(CARGO) test --workspace --doc
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps
	$(CARGO) metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml \
		--filter-platform "$$(rustc -vV | sed -n 's/^host: //p')" >/dev/null
	$(CARGO) test -p bcache-core --no-default-features --features model --test allocator_model
	CARGO='$(CARGO)' tests/run.sh

# The fuzz targets for a minute each, on the stable compiler.
fuzz:
	tests/fuzz.sh

# Changes the code in one place after the other and looks whether a test notices: a share of the
# places in an hour (see tests/mutants.sh), or those in what MUTANTS says, as in
# make mutants MUTANTS=allocator/core.
MUTANTS ?=
mutants:
	CARGO='$(CARGO)' tests/mutants.sh $(MUTANTS)

# An hour of the allocator on a loop device: its memory, and whether kernels take what is left.
SOAK_SECONDS ?= 3600
soak: kernels
	$(CARGO) build --workspace --bins
	BCACHE_TEST_SOAK=$(SOAK_SECONDS) CI=true $(CARGO) test --workspace --test bench_kernel -- --nocapture soak

# The parts of the allocator in memory, beside the reference engine: all of them,
# or what BENCH says, as in make bench BENCH='sector --streams 8,128'.
BENCH ?= all
bench:
	$(CARGO) bench -p bcache-bench --bench allocator -- $(BENCH)

# The man pages are committed; a test compares them with what this writes.
man:
	$(CARGO) run -q -p bcachectl -- man man
	$(CARGO) run -q -p bcache-bench -- man man

# With PREFIX=/usr udev, systemd, initramfs-tools, dracut and mkinitcpio find what is theirs.
install: all
	$(INSTALL) -d $(sbindir) $(udevdir)/rules.d $(mandir)/man7 $(mandir)/man8 \
		$(sharedir)/bash-completion/completions $(sharedir)/zsh/site-functions \
		$(sharedir)/fish/vendor_completions.d $(sharedir)/initramfs-tools/hooks \
		$(libdir)/dracut/modules.d/90bcache $(libdir)/initcpio/install \
		$(libdir)/systemd/system
	for bin in $(bins); do \
		$(INSTALL) -m 755 target/release/$$bin $(sbindir)/ && \
		packaging/completions.sh "target/release/$$bin" "$$bin" '' $(sharedir) || exit 1; \
	done
	for name in $(old_names); do \
		ln -sf bcachectl $(sbindir)/$$name && \
		packaging/completions.sh target/release/bcachectl "$$name" "$$name" $(sharedir) || exit 1; \
	done
	for name in $(old_helpers); do \
		ln -sf ../../sbin/bcachectl $(udevdir)/$$name || exit 1; \
	done
	sed 's,@udevdir@,$(PREFIX)/lib/udev,; s,@prefix@,$(PREFIX),' packaging/69-bcache.rules \
		>$(udevdir)/rules.d/69-bcache.rules
	sed 's,@prefix@,$(PREFIX),' packaging/bcachectl-settings@.service \
		>$(libdir)/systemd/system/bcachectl-settings@.service
	chmod 644 $(libdir)/systemd/system/bcachectl-settings@.service
	sed 's,@prefix@,$(PREFIX),' packaging/initramfs-tools-hook >$(sharedir)/initramfs-tools/hooks/bcache
	chmod 644 $(udevdir)/rules.d/69-bcache.rules
	chmod 755 $(sharedir)/initramfs-tools/hooks/bcache
	$(INSTALL) -m 755 packaging/dracut-module-setup.sh \
		$(libdir)/dracut/modules.d/90bcache/module-setup.sh
	sed 's,@prefix@,$(PREFIX),' packaging/mkinitcpio-install >$(libdir)/initcpio/install/bcache
	chmod 644 $(libdir)/initcpio/install/bcache
	$(INSTALL) -m 644 man/*.7 $(mandir)/man7/
	$(INSTALL) -m 644 man/*.8 $(mandir)/man8/

# A Debian package of all that, in the place of bcache-tools, under target/debian.
deb: all
	packaging/deb.sh

# Installs it in trees of Debian 12 and 13 in the place of bcache-tools, goes back, and purges it.
# Wants root.
check-deb: deb kernels
	tests/install-deps.sh package
	tests/package.sh

# Compiles everything with the oldest compiler that it is to build with, Debian 13's. Wants root.
check-oldest:
	tests/install-deps.sh package
	tests/oldest.sh

# Runs `make check` in bare trees of Debian 12 and 13. Wants root.
check-bare:
	tests/install-deps.sh package
	tests/bare.sh

# Runs the reader's kernel suite 20 times on busy processors.
check-loaded: kernels
	$(CARGO) build --workspace --bins
	CARGO='$(CARGO)' tests/loaded.sh

# What building and testing need of the machine (Debian packages).
deps:
	tests/install-deps.sh

# The stock kernels that the tests boot.
kernels: deps
	tests/fetch-kernels.sh
