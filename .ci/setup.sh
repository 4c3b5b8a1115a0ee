# shellcheck shell=bash
# Sourced by ./run, ./test and .ci/run: brings a bare Debian or Ubuntu to the point where `cargo build` works.
# It installs only what is missing, says so first, and prints on stderr alone.

say() { printf '%s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$1" >&2
  shift
  local line
  for line in "$@"; do printf '       %s\n' "$line" >&2; done
  exit 1
}

CACHE_DIR="${MODEL1_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/model1-explorer}"
NEED_VERSION="$(sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)"
CHANNEL="$(sed -n 's/^channel = "\(.*\)".*/\1/p' rust-toolchain.toml)"

# version_at_least HAVE WANT: compares the first two numbers ("1.95.0" is at least "1.90").
version_at_least() {
  local have_major have_minor want_major want_minor
  IFS=. read -r have_major have_minor _ <<<"$1"
  IFS=. read -r want_major want_minor _ <<<"$2"
  [[ "$have_major" =~ ^[0-9]+$ && "$have_minor" =~ ^[0-9]+$ ]] || return 1
  ((have_major > want_major || (have_major == want_major && have_minor >= want_minor)))
}

# The version a rustc command prints, or nothing. The command must not start a download by itself.
rustc_version() { RUSTUP_AUTO_INSTALL=0 "$@" --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'; }

# A C compiler that also links: `gcc` without the C library's headers and start files is not enough.
have_linker() {
  command -v cc >/dev/null 2>&1 || return 1
  local out
  out="$(mktemp)" || return 1
  printf 'int main(void) { return 0; }\n' | cc -x c - -o "$out" >/dev/null 2>&1
  local status=$?
  rm -f "$out"
  return "$status"
}

have_certificates() { [[ -n "${SSL_CERT_FILE:-}" || -s /etc/ssl/certs/ca-certificates.crt || -s /etc/pki/tls/certs/ca-bundle.crt ]]; }

# Is the `rustc` on PATH good enough? With "any", and rustup in front without the channel of rust-toolchain.toml,
# RUSTUP_TOOLCHAIN is set to another installed one that is.
choose_active_rust() {
  local version name
  command -v cargo >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || return 1
  version="$(rustc_version rustc)"
  if [[ -n "$version" ]]; then
    version_at_least "$version" "$NEED_VERSION" && cargo --version >/dev/null 2>&1
    return
  fi
  # rustup stands in front and the wanted channel is not installed: any newer one that is installed will do.
  command -v rustup >/dev/null 2>&1 || return 1
  [[ "${1:-}" == any ]] || return 1
  for name in $(cd / && { rustup show active-toolchain; rustup toolchain list; } 2>/dev/null | sed 's/ .*//'); do
    version="$(rustc_version rustup run "$name" rustc)"
    if [[ -n "$version" ]] && version_at_least "$version" "$NEED_VERSION"; then
      export RUSTUP_TOOLCHAIN="$name"
      return 0
    fi
  done
  return 1
}

# apt_install PACKAGES...: through sudo unless root.
apt_updated=no
apt_command() {
  local sudo=()
  if [[ "$(id -u)" != 0 ]]; then
    command -v sudo >/dev/null 2>&1 || return 1
    if [[ -t 0 ]]; then sudo=(sudo); else sudo=(sudo -n); fi
  fi
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@" >&2
}
apt_update() {
  [[ "$apt_updated" == no ]] || return 0
  apt_command update -qq && apt_updated=yes
}
apt_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  apt_update || say "apt-get update failed; trying with the package lists that are there"
  apt_command install -y --no-install-recommends "$@"
}

# The newest of Debian's and Ubuntu's Rust packages, as "rustc-package cargo-package", if it is new enough.
apt_rust_packages() {
  local rustc version best='' best_version=0.0
  while read -r rustc; do
    version="$(apt-cache policy "$rustc" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')"
    if [[ -z "$version" ]] || ! apt-cache show "${rustc/rustc/cargo}" >/dev/null 2>&1; then continue; fi
    if version_at_least "$version" "$NEED_VERSION" && version_at_least "$version" "$best_version"; then
      best="$rustc ${rustc/rustc/cargo}" best_version="$version"
    fi
  done < <(apt-cache pkgnames rustc 2>/dev/null | grep -E '^rustc(-web|-[0-9.]+)?$' | sort)
  [[ -n "$best" ]] && printf '%s\n' "$best"
}

# Looks for a good enough Rust on PATH, in rustup's folder, and where the distributions put theirs
# (Ubuntu's package rustc-1.89 has its programs in /usr/lib/rust-1.89/bin). "any" as in choose_active_rust.
find_rust() {
  local path="$PATH" directory
  for directory in "" "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/lib/rust-*/bin /usr/bin; do
    [[ -z "$directory" || -x "$directory/rustc" ]] || continue
    export PATH="${directory:+$directory:}$path"
    hash -r
    choose_active_rust "${1:-}" && return 0
  done
  export PATH="$path"
  hash -r
  return 1
}

install_rust() {
  # Some networks let only the second through. It is the server that both fetch Rust itself from.
  local urls=(https://sh.rustup.rs https://static.rust-lang.org/rustup/rustup-init.sh) url script
  [[ -z "${RUSTUP_UPDATE_ROOT:-}" ]] || urls=("$RUSTUP_UPDATE_ROOT/rustup-init.sh")
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  if command -v rustup >/dev/null 2>&1; then
    say "==> rustup toolchain install $CHANNEL"
    if rustup toolchain install "$CHANNEL" --profile minimal --no-self-update >&2; then return 0; fi
    say "rustup could not fetch Rust $CHANNEL"
    find_rust any && return 0
  else
    say "==> Rust $CHANNEL through rustup (into ${CARGO_HOME:-$HOME/.cargo} and ${RUSTUP_HOME:-$HOME/.rustup}; no file of yours is changed)"
    script="$(mktemp)"
    for url in "${urls[@]}"; do
      if ! curl --proto '=https' --tlsv1.2 -fsSL --connect-timeout 20 "$url" -o "$script" || ! head -n 1 "$script" | grep -q '^#!/'; then
        say "rustup's server cannot be reached ($url)"
        continue
      fi
      if RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$script" -y --profile minimal --default-toolchain "$CHANNEL" --no-modify-path >&2; then
        rm -f "$script"
        hash -r
        return 0
      fi
      say "rustup could not install Rust $CHANNEL"
      break
    done
    rm -f "$script"
  fi
  # Second choice: the distribution's own Rust.
  if command -v apt-cache >/dev/null 2>&1 && { apt_update || true; } && local packages && packages="$(apt_rust_packages)"; then
    say "==> Rust from the distribution instead: $packages (about 120 MB)"
    # shellcheck disable=SC2086
    if apt_install $packages; then
      find_rust any && return 0
    fi
  fi
  die "no Rust $NEED_VERSION or newer, and none could be installed." \
    "Tried rustup and the distribution's packages. On a machine with network access run" \
    "  curl https://sh.rustup.rs -sSf | sh -s -- -y --profile minimal --default-toolchain $CHANNEL" \
    "or, behind a proxy, set HTTPS_PROXY and start this script again."
}

# Does this machine have every crate that Cargo.lock names?
have_crates() {
  local host
  host="$(rustc -vV | sed -n 's/^host: //p')"
  cargo metadata --offline --locked --format-version 1 --filter-platform "$host" >/dev/null 2>&1
}

# prepare BINARY LINES...: everything up to a working cargo with all crates. Where BINARY exists already only Rust is
# looked for. LINES say what the caller will fetch later on; they are printed with our own plan before anything is done.
prepare() {
  local binary="$1" packages=() plan=() rust=yes crates=yes line
  shift
  find_rust || rust=no
  if [[ "$rust" == yes && -x "$binary" ]]; then return 0; fi

  have_linker || { packages+=(gcc libc6-dev) && plan+=("gcc and the C library's headers, from apt (about 60 MB)"); }
  have_certificates || { packages+=(ca-certificates) && plan+=("ca-certificates, from apt (1 MB)"); }
  if [[ "$rust" == no ]]; then
    crates=no
    if ! command -v rustup >/dev/null 2>&1 && ! command -v curl >/dev/null 2>&1; then
      packages+=(curl) && plan+=("curl, from apt (2 MB)")
    fi
    plan+=("Rust $CHANNEL, from rustup (about 120 MB, 600 MB on disk) or else from apt")
  else
    have_crates || crates=no
  fi
  [[ "$crates" == yes ]] || plan+=("Rust crates, from crates.io (at most 50 MB)")
  plan+=("$@")
  if ((${#plan[@]})); then
    say "This will fetch, once:"
    for line in "${plan[@]}"; do say "  - $line"; done
  fi

  if ((${#packages[@]})); then
    say "==> apt-get install ${packages[*]}"
    apt_install "${packages[@]}" || die "could not install: ${packages[*]}" \
      "This needs apt and either root or sudo. Ask an administrator for" \
      "  apt-get install ${packages[*]}" "and start this script again."
  fi
  [[ "$rust" == yes ]] || install_rust
  say "Rust: $(rustc --version) ($(command -v cargo))"
  [[ "$crates" == yes ]] || have_crates || fetch_crates
}

fetch_crates() {
  say "==> Rust crates"
  cargo fetch --locked --target "$(rustc -vV | sed -n 's/^host: //p')" >&2 || die "the Rust crates could not be fetched." \
    "If the message above says that Cargo.lock needs an update: run 'cargo update --workspace' and look at the change." \
    "Otherwise crates.io cannot be reached: connect this machine, or set HTTPS_PROXY, and start again." \
    "Only the first build needs the network."
}

# Where the tests' and lints' build results live: outside the checkout, one folder per compiler, so that a fresh clone
# starts warm.
target_folder() {
  local version
  version="$(rustc -vV | awk '/^release:/ { release = $2 } /^commit-hash:/ { hash = substr($2, 1, 9) } END { print release "-" hash }')"
  printf '%s\n' "${MODEL1_TARGET_DIR:-$CACHE_DIR/target}/$version"
}
