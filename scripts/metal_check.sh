#!/usr/bin/env bash
# metal_check.sh FOLDER: type-checks what nobody builds here, on Linux and without an Apple SDK: the feature `metal` and all
# tests for a Mac, and the workspace for 64-bit ARM. As root; needs debootstrap, deb.debian.org and crates.io, 4 GB in
# FOLDER, which is kept, and some 10 minutes of two cores. Nothing is linked or run.
#
# Other targets need a standard library, which is checked from source (-Zbuild-std); so a compiler and its own source are
# taken from Debian sid, into a root of its own. C compiler, archiver and `xcrun` of Apple are stand-ins that write empty
# files, since nothing reads them.
set -euo pipefail
[ $# = 1 ] || { sed -n '2,8p' "$0" | cut -c3- >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "metal_check.sh: only root can make and enter another root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "metal_check.sh: install debootstrap" >&2; exit 1; }
sources=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
sid=$folder/sid
registry=${CARGO_HOME:-$HOME/.cargo}/registry

if [ ! -e "$folder/ready" ]; then
  rm -rf "$sid"
  debootstrap --variant=minbase --include=ca-certificates sid "$sid" http://deb.debian.org/debian
  # Where the clock runs ahead of the mirror, its list of packages counts as expired.
  printf 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n' >"$sid/etc/apt/apt.conf.d/99no-dates"
  cp /etc/resolv.conf "$sid/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$sid/etc/ssl/certs/"
  chroot "$sid" apt-get update -q
  DEBIAN_FRONTEND=noninteractive chroot "$sid" apt-get install -y -q --no-install-recommends \
    rustc cargo rust-src rust-clippy gcc libc6-dev
  touch "$folder/ready"
fi

mkdir -p "$registry" "$folder/target" "$sid"/{sources,target,cargo/registry,apple/sdk}
cat >"$sid/apple/apple-cc" <<'STAND_IN'
#!/bin/sh
# Writes the empty file that it is asked for.
while [ $# -gt 0 ]; do
  case $1 in
    -o) : >"$2"; shift ;;
    -o*) : >"${1#-o}" ;;
  esac
  shift
done
STAND_IN
cat >"$sid/apple/apple-ar" <<'STAND_IN'
#!/bin/sh
# Writes an empty archive.
for word; do case $word in *.a) : >"$word" ;; esac; done
STAND_IN
cat >"$sid/apple/xcrun" <<'STAND_IN'
#!/bin/sh
echo /apple/sdk
STAND_IN
chmod +x "$sid"/apple/{apple-cc,apple-ar,xcrun}

cat >"$sid/apple/check" <<'CHECK'
set -eu
cd /sources
mac="--target aarch64-apple-darwin -Zbuild-std"
arm="--target aarch64-unknown-linux-gnu -Zbuild-std"
echo "the program with metal, for a Mac" >&2
cargo check --locked -p zoo-cli --no-default-features --features metal $mac
echo "all tests with metal, for a Mac" >&2
cargo check --locked --workspace --all-targets --no-default-features --features metal $mac
echo "all of it for 64-bit ARM, with clippy" >&2
cargo clippy --locked --workspace --all-targets --no-default-features $arm -- -D warnings
CHECK

# Mounts are those of a namespace of its own, which goes with the command.
export sources sid folder registry
unshare --mount --propagation private bash -euc '
  mount --bind "$sources" "$sid/sources" && mount -o remount,bind,ro "$sid/sources"
  mount --bind "$folder/target" "$sid/target"
  mount --bind "$registry" "$sid/cargo/registry"
  mount -t proc proc "$sid/proc"
  mount --rbind /dev "$sid/dev"
  exec chroot "$sid" env -i PATH=/apple:/usr/bin:/bin HOME=/root CARGO_HOME=/cargo CARGO_TARGET_DIR=/target \
    RUSTC_BOOTSTRAP=1 SDKROOT=/apple/sdk MACOSX_DEPLOYMENT_TARGET=13.0 \
    CC_aarch64_apple_darwin=/apple/apple-cc CXX_aarch64_apple_darwin=/apple/apple-cc AR_aarch64_apple_darwin=/apple/apple-ar \
    CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=/apple/apple-cc \
    CC_aarch64_unknown_linux_gnu=/apple/apple-cc CXX_aarch64_unknown_linux_gnu=/apple/apple-cc AR_aarch64_unknown_linux_gnu=/apple/apple-ar \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=/apple/apple-cc \
    sh /apple/check
'
