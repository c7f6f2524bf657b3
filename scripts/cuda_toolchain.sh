#!/usr/bin/env bash
# cuda_toolchain.sh PREFIX [full|light|check]
#
# Makes a CUDA 13.0 toolchain prefix (bin nvvm include lib64) from PyPI wheels: enough to compile
# candle-kernels 0.11.1 with nvcc and to link cudarc 0.19 (feature dynamic-linking) with no GPU, no driver
# and no CUDA installed. Prints the exports that cargo needs:   eval "$(cuda_toolchain.sh PREFIX)"
#   full  (default)  compiler wheels + the real cublas, curand, nvrtc, cudnn, nccl wheels (1.9 GB unpacked)
#   light            compiler wheels only (0.3 GB); the libraries are link-only symbol stubs, whose names
#                    come from the cudarc sources that cargo has fetched (run `cargo fetch` first)
#   check            no download at all: an nvcc stand-in that writes empty outputs, and the stubs, so that the cuda
#                    features compile and link. What it builds has none of candle's kernels: it is for clippy and for
#                    the emulated device (tests/emulated_gpu). Needs a CARGO_TARGET_DIR of its own: cudaforge's
#                    cache there takes the empty kernels for done, and a real build in it would keep them.
# Env: CUDATC_QUANT=1    also compile candle's quantised and MoE kernels. Without it they are left out (empty
#                        objects), which saves most of the build and 36 MB; code that uses QTensor or
#                        candle_nn::moe then fails to link. After a change: cargo clean -p candle-kernels
#      CUDA_COMPUTE_CAP  90 (default; cudaforge makes it sm_90a: H100/H200 only), 80 or 89: also newer GPUs
#      PYTHON            the python whose pip downloads (default python3)
# Idempotent: a second run with the same mode only prints. Needs python3 with pip, gcc, ar.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: cuda_toolchain.sh PREFIX [full|light|check]" >&2; exit 2; }
mkdir -p "$1"; PREFIX=$(cd "$1" && pwd); MODE=${2:-full}; PY=${PYTHON:-python3}

# What cuda-toolkit==13.0.2 pins; cudnn and nccl as torch 2.11.0 (cu130) pins them, so that the binary meets
# the very same libraries on a machine that has that torch. nvcc newer than the driver's CUDA would emit
# a PTX version that the driver refuses: stay at 13.0 for driver 580.
COMPILER="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
LIBS="nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88
 nvidia-cudnn-cu13==9.19.0.56 nvidia-nccl-cu13==2.28.9"
case $MODE in
  full) WHEELS="$COMPILER $LIBS";; light) WHEELS=$COMPILER;; check) WHEELS=;;
  *) echo "mode: full, light or check" >&2; exit 2;;
esac
WANT="v5 $MODE $(echo $WHEELS)"
SITE=$PREFIX/site

# stub FILE SONAME < names : a shared library that only defines these symbols, for the linker
stub() {
  sort -u | sed 's/.*/void &(void){}/' >"$PREFIX/.stub.c"
  gcc -shared -fPIC -fno-builtin -w -Wl,-soname,"$2" -o "$PREFIX/lib64/stubs/$1" "$PREFIX/.stub.c"
  rm "$PREFIX/.stub.c"
}

# link_stubs LINES : a stub for each line `module library soname`, with the functions that cudarc calls
link_stubs() {
  local crate mod lib soname
  crate=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-0.19.* | sort -V | tail -1)
  while read -r mod lib soname; do
    grep -oE 'fn (cu|nccl|nvrtc)[A-Za-z0-9_]+\(' "$crate/src/$mod/sys/mod.rs" | sed 's/^fn //; s/($//' |
      stub "lib$lib.so" "$soname"
  done <<<"$1"
}

LIBRARIES='cublas cublas libcublas.so.13
cublaslt cublasLt libcublasLt.so.13
curand curand libcurand.so.10
nvrtc nvrtc libnvrtc.so.13
cudnn cudnn libcudnn.so.9
nccl nccl libnccl.so.2'

make_standin() {
  mkdir -p "$PREFIX/bin" "$PREFIX/include" "$PREFIX/lib64/stubs"; ln -s lib64 "$PREFIX/lib"
  cat >"$PREFIX/bin/nvcc" <<'N'
#!/bin/sh
# stand-in for nvcc where no kernel is wanted: answers --version, leaves empty texts, objects and archives
out=; dir=.; src=; kind=object
while [ $# -gt 0 ]; do
  case $1 in
    --version) printf 'nvcc: stand-in\n(c)\nBuilt on never\nCuda compilation tools, release 13.0, V13.0.88\n'; exit;;
    -o) out=$2; shift;; --output-directory) dir=$2; shift;; --ptx) kind=ptx;; --lib) kind=archive;; *.cu) src=$1;;
  esac; shift
done
case $kind in
  ptx) : >"${out:-$dir/$(basename "$src" .cu).ptx}";;
  archive) rm -f "$out"; ar crs "$out";;
  object) [ -z "$out" ] || cc -c -x c /dev/null -o "$out";;
esac
N
  chmod +x "$PREFIX/bin/nvcc"
  link_stubs "driver cuda libcuda.so.1
runtime cudart libcudart.so.13
$LIBRARIES"
}

make_toolchain() {
  # one pip call: --target merges the shared nvidia/ folder only within a call
  "$PY" -m pip install -q --disable-pip-version-check --no-deps --no-compile --only-binary=:all: \
      --target "$SITE" $WHEELS >&2
  local C=$SITE/nvidia/cu13 d f b
  ln -s site/nvidia/cu13/bin "$PREFIX/bin"; ln -s site/nvidia/cu13/nvvm "$PREFIX/nvvm"
  mkdir -p "$PREFIX/include" "$PREFIX/lib64/stubs"; ln -s lib64 "$PREFIX/lib"
  for d in "$C" "$SITE"/nvidia/{cudnn,nccl}; do
    [ -d "$d/lib" ] || continue
    ln -sfn "$d"/include/* "$PREFIX/include/"
    for f in "$d"/lib/*.so.* "$d"/lib/*.a; do
      [ -e "$f" ] || continue
      b=$(basename "$f"); ln -sfn "$f" "$PREFIX/lib64/$b"
      case $b in *.alt.so.*) ;; *.so.*) ln -sfn "$b" "$PREFIX/lib64/${b%%.so.*}.so";; esac
    done
  done
  # libcuda: every driver function that cuda.h declares, after its renaming macros (cuMemAlloc -> cuMemAlloc_v2);
  # only libcuda.so, never libcuda.so.1, so that no run-time search can take the stub for the driver
  { gcc -E -P -I"$PREFIX/include" "$PREFIX/include/cuda.h"
    gcc -E -P -I"$PREFIX/include" -DCUDA_API_PER_THREAD_DEFAULT_STREAM "$PREFIX/include/cuda.h"; } |
    tr '\n' ' ' | grep -oE '\bcu[A-Z][A-Za-z0-9_]*[[:space:]]*\(' | tr -d ' (' | stub libcuda.so libcuda.so.1
  [ "$MODE" != light ] || link_stubs "$LIBRARIES"
  # the nvcc that leaves out candle's quantised and MoE kernels (see CUDATC_QUANT)
  mkdir -p "$PREFIX/noquant/bin"; ln -s ../include ../lib64 ../nvvm "$PREFIX/noquant/"
  cat >"$PREFIX/noquant/bin/nvcc" <<N
#!/bin/sh
c=; out=; skip=; prev=
for a; do
  case \$a in -c) c=1;; */mmq_*.cu|*/mmvq_*.cu|*/moe_*.cu|mmq_*.cu|mmvq_*.cu|moe_*.cu) skip=1;; esac
  [ "\$prev" != -o ] || out=\$a
  prev=\$a
done
if [ -n "\$c" ] && [ -n "\$skip" ]; then exec gcc -c -x c /dev/null -o "\$out"; fi
exec "$PREFIX/bin/nvcc" "\$@"
N
  chmod +x "$PREFIX/noquant/bin/nvcc"
}

if [ "$(cat "$PREFIX/.stamp" 2>/dev/null || true)" != "$WANT" ]; then
  rm -rf "$SITE" "$PREFIX"/{bin,nvvm,include,lib,lib64,noquant,.stamp}
  if [ "$MODE" = check ]; then make_standin; else make_toolchain; fi
  "$PREFIX/bin/nvcc" --version >/dev/null
  echo "$WANT" >"$PREFIX/.stamp"
fi

NVCC=$PREFIX/bin/nvcc
[ "$MODE" = check ] || [ -n "${CUDATC_QUANT:-}" ] || NVCC=$PREFIX/noquant/bin/nvcc
cat <<E
export CUDA_HOME=$PREFIX CUDA_PATH=$PREFIX NVCC=$NVCC
export PATH=$PREFIX/bin:\$PATH
export CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90}
export CUDAFORGE_THREADS=\${CUDAFORGE_THREADS:-$(nproc)}
E
