#!/usr/bin/env bash
# Makes the README's pictures and its recording anew, into docs/: the real page in headless Chromium, the real host, the
# bundled model. Needs chromium, imagemagick and ffmpeg; takes some minutes. Look at them before committing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
source .ci/setup.sh
for program in chromium convert ffmpeg; do
  command -v "$program" >/dev/null 2>&1 || die "$program is not installed: apt-get install chromium imagemagick ffmpeg"
done
find_rust || die "no Rust $NEED_VERSION or newer is on this machine; ./run installs one."
CARGO_TARGET_DIR="$(target_folder)"
export CARGO_TARGET_DIR

.ci/wasm.sh
cargo build --release --locked -p model1
cargo build --locked --profile test -p model1-tests-web --example pictures
raw="$(mktemp -d)"
trap 'rm -rf "$raw"' EXIT
MODEL1_BIN_DIR="$CARGO_TARGET_DIR/release" "$CARGO_TARGET_DIR/debug/examples/pictures" "$raw"

mkdir -p docs
for picture in "$raw"/*.png; do
  convert "$picture" -strip -define webp:lossless=true -define webp:method=6 "docs/$(basename "$picture" .png).webp"
done
ffmpeg -v error -y -safe 0 -i "$raw/frames/list.txt" -vf 'fps=8,mpdecimate,scale=1056:-1:flags=lanczos' -fps_mode vfr \
  -c:v libwebp_anim -quality 75 -compression_level 6 -loop 0 docs/flow.webp
ls -l docs
