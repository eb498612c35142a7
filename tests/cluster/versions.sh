# The versions of everything that the cluster's tools are built from. tests/e2e/run reads the same file. Debian packages have
# the versions of the machine's release.
# shellcheck shell=bash disable=SC2034  # the scripts use the names

# From 1.35 on, the kubelet refuses cgroup v1 unless `failCgroupV1` is false, which tests/cluster/node.sh already sets.
readonly KUBERNETES_VERSION=1.34.4
# The server that Kubernetes 1.34 is tested with.
readonly ETCD_VERSION=3.6.4
readonly CONTAINERD_VERSION=2.2.9
readonly CRICTL_VERSION=1.34.0
readonly HELM_VERSION=3.17.3
# The name of the sandbox image. Its program is compiled here.
readonly PAUSE_VERSION=3.10
