# shellcheck shell=bash
# Two S3 servers, for tests and benchmarks: how they are started on loopback. Sourced. tests/e2e/run says how they are installed.

# shellcheck disable=SC2034  # for those who source it
readonly S3_ID=larder S3_SECRET=secret-of-tests
S3_CLIENT="$(dirname -- "${BASH_SOURCE[0]}")/s3.py"
readonly S3_CLIENT

# The command of the server.
STORE=()

# Each directory below DIR is a bucket, and each file in it an object. GET /health needs no signature.
versitygw_command() { # PROGRAM PORT DIR
  mkdir -p "$3"
  STORE=("$1" --port "127.0.0.1:$2" --access "$S3_ID" --secret "$S3_SECRET" --quiet --health /health posix "$3")
}

# The server consists of four servers with two ports each. PORT is that of S3. The other seven may be any.
seaweedfs_command() { # PROGRAM PORT DIR PORT…
  mkdir -p "$3"
  cat >"$3/identities.json" <<JSON
{"identities": [{"name": "$S3_ID", "credentials": [{"accessKey": "$S3_ID", "secretKey": "$S3_SECRET"}], "actions": ["Admin"]}]}
JSON
  STORE=("$1" server -dir="$3" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -master.electionTimeout=1s -volume.max=64 -master.volumeSizeLimitMB=256
    -filer -filer.localSocket="$3/filer.sock" -s3 -s3.config="$3/identities.json" -s3.localSocket="$3/s3.sock" -s3.port.iceberg=0
    -s3.port.lance=0 -s3.port="$2" -s3.port.grpc="$4" -master.port="$5" -master.port.grpc="$6" -volume.port="$7"
    -volume.port.grpc="$8" -filer.port="$9" -filer.port.grpc="${10}")
}

# Runs the client of s3.py with a bucket.
s3() { # PORT BUCKET COMMAND…
  python3 "$S3_CLIENT" "http://$S3_ID:$S3_SECRET@127.0.0.1:$1/$2" "${@:3}"
}
