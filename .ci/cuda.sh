#!/usr/bin/env bash
# Fetches a CUDA compiler (NVIDIA's wheels from PyPI, 104 MB, no root, no GPU needed) into the cache folder, where the
# build finds it. Does nothing where there is one already, or where MODEL1_CUDA=off.
#
#   .ci/cuda.sh          fetch, if an NVIDIA GPU is here or MODEL1_CUDA=require
#   .ci/cuda.sh --plan   only print, one a line, what that would fetch
#   .ci/cuda.sh --archs  print the targets of this machine's GPUs, as MODEL1_CUDA_ARCHS takes them (nothing without a GPU)
#   .ci/cuda.sh --have   only say by its exit status whether there is a compiler, and MODEL1_CUDA is not off
#   .ci/cuda.sh --fetch  fetch in any case
#   .ci/cuda.sh --check  compile every kernel for sm_90a and sm_80; fail on spills, local memory, warnings, and where kernels
#                        made for Hopper's tensor cores (*_wg.cu) do without them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
source .ci/setup.sh

wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-crt==13.0.88)
folder="$CACHE_DIR/cuda"
root="$folder/nvidia/cu13"

have_gpu() { [[ -e /dev/nvidiactl || -e /proc/driver/nvidia/version ]]; }
wanted() { [[ "${MODEL1_CUDA:-auto}" == require ]] || { [[ "${MODEL1_CUDA:-auto}" == auto ]] && have_gpu; }; }
good() { # NVCC: is it version 13 or newer?
  local major
  major="$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\..*/\1/p')"
  [[ -n "$major" ]] && ((major >= 13))
}
# The places the build looks in, in its order.
find_nvcc() {
  local nvcc
  for nvcc in "${MODEL1_NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc "$root/bin/nvcc"; do
    if [[ -x "$nvcc" ]] && good "$nvcc"; then
      printf '%s\n' "$nvcc"
      return 0
    fi
  done
  return 1
}
# A Python that installs wheels. Debian's own has no pip without python3-pip.
find_pip() {
  local python
  for python in python3 python; do
    if command -v "$python" >/dev/null 2>&1 && "$python" -m pip --version >/dev/null 2>&1; then
      printf '%s\n' "$python"
      return 0
    fi
  done
  return 1
}

fetch() {
  find_nvcc >/dev/null && return 0
  local python
  python="$(find_pip)" || {
    say "The CUDA compiler cannot be fetched: there is no Python with pip (apt-get install python3-pip). Built for the CPU alone."
    return 1
  }
  say "==> the CUDA compiler, from PyPI (104 MB)"
  rm -rf "$folder.part"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target "$folder.part" "${wheels[@]}" >&2 || {
    rm -rf "$folder.part"
    say "The CUDA compiler could not be fetched; the messages are above. Built for the CPU alone."
    return 1
  }
  ln -sfn lib "$folder.part/nvidia/cu13/lib64"
  rm -rf "$folder"
  mv "$folder.part" "$folder"
  find_nvcc >/dev/null
}

archs() {
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  local cap list=()
  while read -r cap; do
    case "$cap" in
      9.0) list+=(90a) ;;
      10.*) list+=(100f) ;;
      12.*) list+=(120f) ;;
      [0-9]*.[0-9]*) list+=("${cap/./}") ;;
    esac
  done < <(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u)
  ((${#list[@]})) || return 0
  (IFS=,; printf '%s\n' "${list[*]}")
}

# How many HGMMA instructions (wgmma) machine code has: 16 bytes each, the opcode in the lowest 12 bits. Data may look like one.
count_hgmma() { # CUBIN
  od -An -v -tx1 -w16 "$1" | grep -c '^ f0 .9' || true
}

# One source for one target; says what is wrong, or nothing. What passed once is not compiled again.
check_one() { # NVCC SOURCE ARCH HEADERS
  local nvcc="$1" source="$2" arch="$3" stamp said spilled cubin
  stamp="$CACHE_DIR/cuda-checked/$({ printf '%s\n' "$arch" "$4" && cat "$source" .ci/cuda.sh; } | sha256sum | cut -d ' ' -f 1)"
  [[ -s "$stamp" ]] && return 0
  cubin="$stamp.cubin"
  if ! said="$("$nvcc" -std=c++17 -O3 -Xptxas -O3,-v -Werror all-warnings \
    "-gencode=arch=compute_$arch,code=sm_$arch" --cubin -o "$cubin" "$source" 2>&1)"; then
    say "$source does not compile for sm_$arch:" "$said"
    return 1
  fi
  # "N bytes stack frame, N bytes spill stores, N bytes spill loads" per kernel.
  spilled="$(awk '
    /Compiling entry function/ { kernel = $0; sub(/^.*entry function ./, "", kernel); sub(/[^A-Za-z0-9_].*$/, "", kernel) }
    /bytes stack frame/ && !/ 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ { sub(/^ */, ""); print "  " kernel ": " $0 }
  ' <<<"$said")"
  if [[ -n "$spilled" ]]; then
    say "$source, sm_$arch: kernels that use local memory:" "$spilled"
    return 1
  fi
  if grep -q 'wgmma.mma_async instructions are serialized' <<<"$said"; then
    say "$source, sm_$arch: products that wait for each other:" "$(grep 'serialized' <<<"$said")"
    return 1
  fi
  # These have kernels for sm_90a alone.
  if [[ "$source" == *_wg.cu || "$source" == *_near.cu ]] && [[ "$arch" != 90a ]]; then
    rm -f "$cubin"
    echo 0 >"$stamp"
    return 0
  fi
  if [[ "$source" == *_wg.cu ]]; then
    if (($(count_hgmma "$cubin") < 8)); then
      say "$source, sm_$arch: no HGMMA instructions: its products do not use Hopper's tensor cores"
      return 1
    fi
  fi
  rm -f "$cubin"
  grep -c 'Compiling entry function' <<<"$said" >"$stamp" || { say "$source has no kernel"; rm -f "$stamp"; return 1; }
}

# Every kernel source, for both targets. ptxas says what each kernel takes.
check() {
  local nvcc headers source arch bad=0 running=0 jobs
  nvcc="$(find_nvcc)" || die "no CUDA compiler; .ci/cuda.sh --fetch gets one."
  headers="$({ "$nvcc" --version && cat kernels/cuda/src/*.cuh; } | sha256sum)"
  mkdir -p "$CACHE_DIR/cuda-checked"
  find "$CACHE_DIR/cuda-checked" -type f -mtime +30 -delete
  jobs="$(nproc 2>/dev/null || echo 2)"
  for source in kernels/cuda/src/*.cu; do
    for arch in 90a 80; do
      if ((running >= jobs)); then
        wait -n || bad=1
        running=$((running - 1))
      fi
      check_one "$nvcc" "$source" "$arch" "$headers" &
      running=$((running + 1))
    done
  done
  while ((running > 0)); do
    wait -n || bad=1
    running=$((running - 1))
  done
  ((bad == 0)) && say "every kernel compiles for sm_90a and sm_80: no spills, no local memory, tensor cores where meant"
  return "$bad"
}

case "${1:-}" in
  --plan)
    if wanted && ! find_nvcc >/dev/null; then echo "a CUDA compiler, from PyPI (NVIDIA's wheels: 104 MB, 500 MB on disk)"; fi ;;
  --archs) archs ;;
  --have) [[ "${MODEL1_CUDA:-auto}" != off ]] && find_nvcc >/dev/null ;;
  --check) check ;;
  --fetch) fetch ;;
  "")
    wanted || exit 0
    fetch || [[ "${MODEL1_CUDA:-auto}" != require ]] || die "MODEL1_CUDA=require, but there is no CUDA compiler." ;;
  *) die "not understood: $1" "accepted: --plan, --archs, --have, --fetch, --check" ;;
esac
