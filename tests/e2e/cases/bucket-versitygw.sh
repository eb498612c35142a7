# Proves what a bucket promises (`objectStore`, tests/e2e/bucket.sh) with versitygw, an S3 server that keeps objects as files.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=../../stores/stores.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../stores/stores.sh"

# Building it takes longer than this case may.
need_tool versitygw "tests/e2e/run --tools builds it, in several minutes" 30
versitygw_command "$TOOL" "$(free_port)" "$CASE_DIR/s3"
readonly STORE_PORT=${STORE[2]##*:}

# Changes a byte in the middle of an object.
object_damage() { # KEY
  local file="$CASE_DIR/s3/larder/$1" size
  size=$(stat -c %s "$file")
  python3 - "$file" $((size / 2)) <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte[0] ^ 1]))
PYTHON
}

# shellcheck source=../bucket.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../bucket.sh"
