#!/usr/bin/env bash
# Shows that a model runs under a memory limit: a control group of LIMIT bytes, a prompt that fills most of a 4k context.
#
#   sudo bench/memory_limit.sh MODEL.gguf [LIMIT=2147483648] [PROMPT_TOKENS=4032]
#
# Needs root, the release build of model1 and control groups (version 1 or 2).
set -euo pipefail
model="$1" limit="${2:-2147483648}" tokens="${3:-4032}"
program="$(dirname "${BASH_SOURCE[0]}")/../target/release/model1"

root=/sys/fs/cgroup/memory max=memory.limit_in_bytes peak=memory.max_usage_in_bytes
if [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then root=/sys/fs/cgroup max=memory.max peak=memory.peak; fi
group="$root/model1-limit"
ids="$(mktemp)"
mkdir -p "$group"
trap 'rm -f "$ids"; rmdir "$group"' EXIT
echo "$limit" >"$group/$max"
for ((i = 0; i < tokens; i++)); do printf '%d\n' $(((i * i * 7919 + 13 * i + 5) % 40000)); done >"$ids"

# Pages that are cached already are charged to whoever read them: the file is read anew, into this group.
sync
echo 1 >/proc/sys/vm/drop_caches || echo "the page cache could not be emptied: the file's pages may not count" >&2

(
  echo "$BASHPID" >"$group/cgroup.procs"
  exec "$program" generate --model "$model" --context 4096 --ids "@$ids" --max-tokens 60 --ignore-eos
) >/dev/null
printf 'limit %d bytes, peak of the group, pages of files included: %d bytes\n' "$limit" "$(cat "$group/$peak")"
