#!/usr/bin/env bash
# Builds the interface for browsers and the webview into ui/dist, and gzip copies of it into ui/dist-gz.
# Does nothing where the sources are those of the last time. `.ci/wasm.sh --plan` only prints, one a line, what it would
# fetch; `--check` only says by its exit status whether the page is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=.ci/setup.sh
source .ci/setup.sh

triple=wasm32-unknown-unknown
out=ui/dist
zipped=ui/dist-gz
# Everything the page is made from. File contents, not times: a fresh clone with a warm cache is up to date, too.
fingerprint() {
  {
    cat .ci/wasm.sh Cargo.lock
    sed -n '/^\[workspace.package\]/,/^\[workspace.lints/p; /^\[profile.web\]/,/^$/p; /^\[profile.release\]/,/^$/p' Cargo.toml
    find ui/Cargo.toml ui/src ui/assets ui/web engine/protocol/Cargo.toml engine/protocol/src -type f 2>/dev/null |
      LC_ALL=C sort | xargs -d '\n' sha256sum
  } | sha256sum | cut -d ' ' -f 1
}
up_to_date() { [[ -s "$out/index.html" && -s "$zipped/made-from" && "$(<"$zipped/made-from")" == "$wanted" ]]; }
wanted="$(fingerprint)"

# Whether the compiler on PATH has the target's standard library.
have_target() {
  local lib
  lib="$(rustc --print target-libdir --target "$triple" 2>/dev/null)" || return 1
  compgen -G "$lib/libstd-*.rlib" >/dev/null
}
# Debian's packages: compiler, standard library's source, linker, all of one version. 1.95 with 1.96's source fails.
debian_packages=(rustc-web cargo-web rust-web-src lld-22)
have_debian() { [[ -x /usr/bin/rustc && -x /usr/bin/cargo && -n "$(debian_linker)" ]] && dpkg -s rust-web-src >/dev/null 2>&1; }
debian_linker() { command -v wasm-ld-22 || true; }
debian_offers() {
  command -v apt-cache >/dev/null 2>&1 || return 1
  local name
  for name in "${debian_packages[@]}"; do
    [[ -n "$(apt-cache policy "$name" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p')" ]] || return 1
  done
}
# The ways to the target, best first: `there`, `debian`, `rustup` (20 MB, no root), `apt`.
ways() {
  if have_target; then echo there; fi
  if have_debian; then echo debian; fi
  if command -v rustup >/dev/null 2>&1; then echo rustup; fi
  if debian_offers; then echo apt; fi
}
way() { ways | head -n 1; }

case "${1:-}" in
  --check) up_to_date; exit ;;
  --plan)
    up_to_date && exit 0
    find_rust || true
    case "$(way)" in
      apt) echo "a Rust that makes WebAssembly, from apt (${debian_packages[*]}: 150 MB, 600 MB on disk)" ;;
      rustup) echo "Rust's standard library for WebAssembly, from rustup (20 MB)" ;;
    esac
    exit 0 ;;
esac
up_to_date && exit 0

# One build at a time: ./run and ./test may both want the page.
mkdir -p "$CACHE_DIR"
if command -v flock >/dev/null 2>&1; then
  exec 9>"$CACHE_DIR/web.lock"
  flock 9
  up_to_date && exit 0
fi

# The same sources give the same page: another checkout may have made it already.
kept="$CACHE_DIR/page/$wanted"
if [[ -s "$kept/dist/index.html" ]]; then
  rm -rf "$out" "$zipped"
  cp -r "$kept/dist" "$out"
  cp -r "$kept/dist-gz" "$zipped"
  touch "$kept"
  exit 0
fi

find_rust || die "no Rust $NEED_VERSION or newer is on this machine; ./run installs one."
say "==> the interface for browsers (some minutes the first time)"

tried=()
for name in $(ways); do
  case "$name" in
    there | debian) break ;;
    rustup)
      say "==> rustup target add $triple"
      if rustup target add "$triple" >&2 && have_target; then break; fi
      tried+=("rustup target add $triple") ;;
    apt)
      say "==> apt-get install ${debian_packages[*]}"
      if apt_install "${debian_packages[@]}"; then break; fi
      tried+=("apt-get install ${debian_packages[*]} (it needs root or sudo)") ;;
  esac
done
case "$(way)" in
  there | debian) ;;
  *)
    ((${#tried[@]})) || tried=("nothing: there is no rustup, and apt does not offer ${debian_packages[*]}")
    die "this Rust ($(rustc --version)) cannot make WebAssembly: it lacks the target $triple." "Tried, without success:" "${tried[@]/#/  - }" ;;
esac

# Build results for browsers have a folder of their own: other flags, maybe another compiler. The linker's name is part
# of what cargo compares, so it is always the same.
web_target="${MODEL1_TARGET_DIR:-$CACHE_DIR/target}/web"
build=(build --profile web --locked --lib -p model1-ui --target "$triple" --target-dir "$web_target")
case "$(way)" in
  there) cargo "${build[@]}" >&2 ;;
  debian)
    # Debian ships the standard library as source; -Zbuild-std is what RUSTC_BOOTSTRAP is for.
    env -u RUSTUP_TOOLCHAIN PATH="/usr/bin:$PATH" RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
      CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-22 \
      /usr/bin/cargo "${build[@]}" -Zbuild-std=std,panic_abort >&2 ;;
  *) false ;;
esac || die "the interface could not be built for browsers; the messages are above."
cargo build --profile tool --locked -p model1-web --target-dir "$web_target/tool" >&2 ||
  die "the tool that makes the page could not be built; the messages are above."

"$web_target/tool/tool/model1-web" "$web_target/$triple/web/ui.wasm" "$out" "$zipped" || die "the page could not be made."
printf '%s\n' "$wanted" >"$zipped/made-from"
rm -rf "$kept"
mkdir -p "$kept"
cp -r "$out" "$kept/dist"
cp -r "$zipped" "$kept/dist-gz"
# Pages of sources nobody had for a month are ours to drop.
find "$CACHE_DIR/page" -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -rf {} +
