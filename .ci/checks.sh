#!/usr/bin/env bash
# The rules of the house that no compiler checks: who may import whom, where `unsafe` may stand, how large the tree may
# grow. Looks at tracked files only. Needs bash, git, grep, sed, awk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

problems=0
problem() {
  printf 'rule broken: %s\n' "$1" >&2
  if [[ -n "${2:-}" ]]; then printf '    %s\n' "${2//$'\n'/$'\n'    }" >&2; fi
  problems=$((problems + 1))
}
tracked() { git ls-files -z -- "$@"; }

# --- imports ----------------------------------------------------------------------------------------------------------
# Our crates by the name that other manifests use, and which of them each folder may depend on.
ours='kernels|engine|protocol|checkpoint|text|fetch|host|desktop|ui|cli|model1|model1-[a-z-]+'
allowed_for() {
  case "$1" in
    kernels | engine/protocol | engine/fetch | ui/web | ui/desktop) echo 'nothing' ;;
    engine/checkpoint) echo 'kernels' ;;
    engine/text) echo 'kernels|checkpoint' ;;
    engine) echo 'kernels|protocol|checkpoint|text|fetch' ;;
    engine/host) echo 'kernels|engine|protocol|checkpoint|text|fetch' ;;
    engine/cli) echo 'kernels|engine|protocol|checkpoint|text|fetch|host' ;;
    ui) echo 'protocol' ;;
    ui/native) echo 'protocol|host|ui|desktop' ;;
    src-tauri) echo 'protocol|host|desktop' ;;
    tests | tests/*) echo '.*' ;;
    examples/*) echo 'engine' ;;
    *) echo 'unknown' ;;
  esac
}
# The keys of every dependency table: `name = ...`, `name.workspace = true` and `[dependencies.name]`.
dependencies_of() {
  awk '
    /^\[/ {
      inside = 0; table = $0; gsub(/[][ ]/, "", table)
      if (table ~ /(^|\.)(dev-|build-)?dependencies$/) inside = 1
      else if (table ~ /(^|\.)(dev-|build-)?dependencies\./) { sub(/^.*dependencies\./, "", table); print table }
      next
    }
    inside && /^[A-Za-z0-9_-]+[ .=]/ { name = $0; sub(/[ .=].*/, "", name); print name }
  ' "$1"
}
while IFS= read -r -d '' manifest; do
  folder="$(dirname "$manifest")"
  case "$folder" in . | bench | bench/* | */fuzz) continue ;; esac
  allowed="$(allowed_for "$folder")"
  if [[ "$allowed" == unknown ]]; then
    problem "$manifest: a crate that the import table in .ci/checks.sh does not know; add it there"
    continue
  fi
  forbidden="$(dependencies_of "$manifest" | grep -xE "$ours" | sed 's/^model1-//' | grep -vxE "$allowed" || true)"
  [[ -z "$forbidden" ]] || problem "$manifest may depend on ($allowed) of our crates, not on:" "$forbidden"
done < <(tracked '*Cargo.toml')

# search PATTERN PATHS...: matching lines of Rust files, comment lines left out.
search() {
  local pattern="$1"
  shift
  git grep -nIP "$pattern" -- "$@" | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//' || true
}
found="$(search '\b(engine|checkpoint|protocol|host|ui|model1_[a-z]+)::|\buse (text|fetch)::' 'kernels/*.rs')"
[[ -z "$found" ]] || problem "kernels names a crate above it" "$found"

# Block code and lowering know the op set, never a concrete backend. Files are joined into one line each, because a
# `use` list may span lines.
while IFS= read -r -d '' file; do
  found="$(sed 's,//.*,,' "$file" | tr '\n' ' ' | grep -oE '\bkernels::(\{[^;]*\b)?(cpu|cuda)\b' || true)"
  [[ -z "$found" ]] || problem "$file names a concrete backend" "$found"
done < <(tracked 'engine/src/blocks*.rs' 'engine/src/lower*.rs')

# --- unsafe -----------------------------------------------------------------------------------------------------------
found="$(search '\bunsafe\s*(\{|\(|fn\b|impl\b|trait\b|extern\b|$)|\b(allow|expect)\([^)]*\bunsafe_code\b' \
  '*.rs' ':!kernels' ':!engine/checkpoint/src/mmap.rs' ':!bench/src/llama.rs' ':!tests/cuda/src/lib.rs')"
[[ -z "$found" ]] || problem "unsafe outside kernels/ and engine/checkpoint/src/mmap.rs" "$found"

# --- size -------------------------------------------------------------------------------------------------------------
# bytes_of PATHS...: the sum of the tracked files' sizes as they lie in the working tree.
bytes_of() {
  tracked "$@" | while IFS= read -r -d '' file; do
    if [[ -f "$file" ]]; then wc -c <"$file"; fi
  done | awk '{ sum += $1 } END { printf "%d\n", sum }'
}
at_most() { # what, limit in bytes, paths...
  local what="$1" limit="$2" bytes
  shift 2
  bytes="$(bytes_of "$@")"
  printf '%-16s %9d of %9d bytes\n' "$what" "$bytes" "$limit"
  ((bytes <= limit)) || problem "$what: $bytes bytes tracked, at most $limit allowed"
}
at_most 'all files' $((40 * 1024 * 1024)) .
at_most 'engine/bundled' 24000000 engine/bundled
at_most 'tests/goldens' 8000000 tests/goldens
at_most 'pictures' 3000000 '*.png' '*.jpg' '*.jpeg' '*.gif' '*.svg' '*.webp' '*.ico' '*.icns'
while IFS= read -r -d '' file; do
  if [[ -f "$file" ]] && (($(wc -c <"$file") > 15 * 1024 * 1024)); then problem "$file is larger than 15 MiB"; fi
done < <(tracked engine/bundled)

# A file is for one thing; past about 600 lines it is split by meaning.
while IFS= read -r -d '' file; do
  if [[ -f "$file" ]] && (($(wc -l <"$file") > 620)); then problem "$file has $(wc -l <"$file") lines; about 600 are allowed"; fi
done < <(tracked '*.rs')

# --- paths ------------------------------------------------------------------------------------------------------------
found="$(git grep -nI '/wo''rk/' || true)"
[[ -z "$found" ]] || problem "a path of one particular machine" "$found"

if ((problems)); then
  printf '%d rule(s) broken\n' "$problems" >&2
  exit 1
fi
echo 'import rules, unsafe, sizes and paths: all as they should be'
