# shellcheck shell=bash
# Runs the steps of the gate in two lanes at the same time, and reports how long each took. Sourced by `run`.
#
# A step is a function. Its output goes to a file and is printed when it has ended, so that steps do not mix. If a step
# fails, the later steps of its lane are skipped; the other lane ends its current step and stops.

LANES=$(mktemp -d)
readonly LANES

# Runs the named steps one after another.
lane() {
  local step began status
  for step in "$@"; do
    [[ ! -e $LANES/failed ]] || return 1
    began=$SECONDS
    status=0
    # In a shell of its own, in which the first failing command ends the step.
    bash -euo pipefail -c 'source .ci/steps.sh; "$1"' lane "$step" >"$LANES/$step.log" 2>&1 </dev/null || status=$?
    printf '%s %s %s\n' "$step" "$status" "$((SECONDS - began))" >>"$LANES/results"
    if ((status != 0)); then
      touch "$LANES/failed"
    fi
    {
      flock 9
      printf '\n== %s: %s, %d s\n' "$step" "$([[ $status == 0 ]] && echo passed || echo FAILED)" "$((SECONDS - began))"
      cat "$LANES/$step.log"
    } 9>"$LANES/printing"
    ((status == 0)) || return 1
  done
}

# Waits for the lanes with these pids; prints the times. Fails if a step has failed.
join_lanes() {
  local pid failed=0
  for pid in "$@"; do
    wait "$pid" || failed=1
  done
  printf '\n== times\n'
  awk '{ printf "%-16s %5d s  %s\n", $1, $3, $2 == 0 ? "passed" : "FAILED" }' "$LANES/results"
  printf '%-16s %5d s\n' total "$SECONDS"
  return "$failed"
}
