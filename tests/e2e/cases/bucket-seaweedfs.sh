# Proves what a bucket promises (`objectStore`, tests/e2e/bucket.sh) with SeaweedFS.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=../../stores/stores.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../stores/stores.sh"

need_tool weed "it needs python3-venv, and PyPI" 60
STORE_PORT=$(free_port)
readonly STORE_PORT
OTHER_PORTS=()
for _ in {1..7}; do OTHER_PORTS+=("$(free_port)"); done
readonly OTHER_PORTS
seaweedfs_command "$TOOL" "$STORE_PORT" "$CASE_DIR/s3" "${OTHER_PORTS[@]}"

# It takes long to stop, and leaves sockets in /tmp.
stop_store() {
  local status=$? port
  trap - ERR
  set +e
  (stop_server store KILL)
  for port in "${OTHER_PORTS[@]}"; do rm -f -- /tmp/seaweedfs-*-grpc-"$port".sock; done
  (exit "$status")
  stop_servers
}
trap stop_store EXIT

# Changes a byte in the middle of an object. Its files contain many objects, so it is replaced.
object_damage() { # KEY
  s3 "$STORE_PORT" larder get "$1" >"$CASE_DIR/tmp/object"
  python3 - "$CASE_DIR/tmp/object" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    content = bytearray(file.read())
    content[len(content) // 2] ^= 1
    file.seek(0)
    file.write(content)
PYTHON
  s3 "$STORE_PORT" larder put "$1" <"$CASE_DIR/tmp/object"
}

# shellcheck source=../bucket.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../bucket.sh"
