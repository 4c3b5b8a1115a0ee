# shellcheck shell=bash
# Sourced by ./run and ./test after setup.sh: what the interface needs besides a Rust compiler.

# --- displays ---------------------------------------------------------------------------------------------------------
# Is there a display a window could open on? The variables alone do not tell: their sockets are asked, too. Prints the
# reason where there is none.
find_display() {
  local socket problem="DISPLAY and WAYLAND_DISPLAY are not set"
  if [[ -n "${WAYLAND_DISPLAY:-}" ]]; then
    socket="${XDG_RUNTIME_DIR:+$XDG_RUNTIME_DIR/}$WAYLAND_DISPLAY"
    [[ -S "$socket" ]] && return 0
    problem="WAYLAND_DISPLAY is set, but no compositor listens at $socket"
  fi
  if [[ -n "${DISPLAY:-}" ]]; then
    # "host:1" is a display elsewhere; only connecting would tell.
    [[ "$DISPLAY" == :* ]] || return 0
    socket="${DISPLAY#:}"
    [[ -S "/tmp/.X11-unix/X${socket%%.*}" ]] && return 0
    problem="DISPLAY is $DISPLAY, but no X server listens there"
  fi
  printf '%s\n' "$problem"
  return 1
}

# --- packages ---------------------------------------------------------------------------------------------------------
# What the desktop window is built with, and zenity for file dialogs where no portal runs. GTK, soup and JavaScriptCore
# come with the first one.
# shellcheck disable=SC2034
window_packages=(libwebkit2gtk-4.1-dev pkg-config zenity)
have_window_packages() { command -v pkg-config >/dev/null 2>&1 && pkg-config --exists webkit2gtk-4.1 gtk+-3.0; }

# What the tests of whole programs need: a browser, a driver for the webview, a display and a graphics driver in
# software, a session bus, pictures of the display, fonts for scripts that ours lack, an input method.
# shellcheck disable=SC2034
test_packages=(
  "${window_packages[@]}" chromium webkit2gtk-driver xvfb dbus-daemon imagemagick mesa-vulkan-drivers libgl1-mesa-dri libegl1
  libxkbcommon-x11-0 xdotool fonts-dejavu-core fonts-noto-cjk ibus ibus-gtk3 ibus-libpinyin
)

# apt_offers PACKAGES...: does apt know all of them?
apt_offers() {
  command -v apt-cache >/dev/null 2>&1 || return 1
  local package
  for package in "$@"; do
    [[ -n "$(apt-cache policy "$package" 2>/dev/null | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p')" ]] || return 1
  done
}

# May we install packages at all?
may_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  [[ "$(id -u)" == 0 ]] && return 0
  command -v sudo >/dev/null 2>&1 || return 1
  [[ -t 0 ]] || sudo -n true 2>/dev/null
}

# apt_size PACKAGES...: what installing them would fetch, in words; works without root.
apt_size() {
  LC_ALL=C apt-get install -y --no-install-recommends --print-uris "$@" 2>/dev/null |
    awk '/^\047/ { sum += $3 } END { if (sum) printf "%.0f MB", sum / 1e6; else print "size unknown" }'
}

# --- built once -------------------------------------------------------------------------------------------------------
# made_from PATHS...: a line that changes with any file below them (names, sizes, times; contents would take longer than
# a second start may).
made_from() { find "$@" -type f -not -name '*.md' -printf '%p %s %T@\n' 2>/dev/null | LC_ALL=C sort | sha256sum | cut -d ' ' -f 1; }

# build_once NAME BINARY PATHS... -- COMMAND...: runs COMMAND unless BINARY is there and the files below PATHS are those
# of its last run.
build_once() {
  local name="$1" binary="$2" paths=() stamp wanted
  shift 2
  while [[ "$1" != -- ]]; do
    paths+=("$1")
    shift
  done
  shift
  stamp="$(dirname "$binary")/.$name.made-from"
  # MODEL1_CUDA and its targets decide what kernels are in it.
  wanted="$(made_from "${paths[@]}") $(rustc -V 2>/dev/null) ${MODEL1_CUDA:-auto} ${MODEL1_CUDA_ARCHS:-}"
  [[ -x "$binary" && -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && return 0
  "$@" || return
  printf '%s\n' "$wanted" >"$stamp"
}
