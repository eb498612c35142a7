# shellcheck shell=bash
# Checks of the shell tests (e2e, cluster, kind). Sourced; `fail` is defined by whoever sources it.

# Repeats a command until it succeeds, every CHECK_PAUSE (0.2) seconds.
wait_until() { # SECONDS WHAT COMMAND…
  local limit=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS <= deadline)) || fail "not within $limit s: $what"
    sleep "${CHECK_PAUSE:-0.2}"
  done
}

equal() { # WHAT EXPECTED ACTUAL
  [[ $2 == "$3" ]] || fail "$1: expected '$2', got '$3'"
}

# Prints the command that failed and where it was called, for `trap 'on_error "$?" "$BASH_COMMAND"' ERR`.
on_error() { # STATUS COMMAND
  local frame
  printf 'FAILED: status %s of: %s\n' "$1" "$2" >&2
  for ((frame = 0; frame < ${#BASH_LINENO[@]} - 1; frame++)); do
    printf '   at %s:%s\n' "${BASH_SOURCE[frame + 1]##*/}" "${BASH_LINENO[frame]}" >&2
  done
}
