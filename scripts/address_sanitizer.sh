#!/usr/bin/env bash
# The operators' tests under AddressSanitizer, on every instruction set of this machine: no kernel may read or write
# outside of its buffers. Linux on x86-64; the first run builds everything once more, in target/address_sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

# The sanitizer is an option that stable compilers hide.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address"
# The threads that compute never end, and what they hold is no leak.
export ASAN_OPTIONS=detect_leaks=0
exec cargo test -p zoo-ops --release --lib --tests --target x86_64-unknown-linux-gnu \
  --target-dir target/address_sanitizer "$@"
