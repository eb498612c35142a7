# Certificates and kubeconfigs of the cluster. Sourced after common.sh.
# shellcheck shell=bash

certificate() { # NAME SUBJECT EXTENSIONS: NAME.crt and NAME.key, from the CA in ca.crt
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PKI/$1.key" -out "$PKI/$1.csr" -subj "$2" 2>/dev/null
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 365 -out "$PKI/$1.crt" \
    -extfile <(printf '%b' "$3") 2>/dev/null
}

kubeconfig() { # NAME SUBJECT
  certificate "$1" "$2" "extendedKeyUsage=clientAuth"
  cat >"$PKI/$1.conf" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: larder, cluster: {server: "https://$HUB:6443", certificate-authority-data: $(base64 -w0 "$PKI/ca.crt")}}]
users:
  - name: $1
    user: {client-certificate-data: $(base64 -w0 "$PKI/$1.crt"), client-key-data: $(base64 -w0 "$PKI/$1.key")}
contexts: [{name: larder, context: {cluster: larder, user: $1}}]
current-context: larder
YAML
}

pki_create() {
  local n
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$PKI/ca.key" -out "$PKI/ca.crt" -days 365 \
    -subj /CN=larder-cluster -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
  # The key of service account tokens.
  openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null
  certificate apiserver /CN=kube-apiserver \
    "subjectAltName=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$HUB,IP:$API_SERVICE\nextendedKeyUsage=serverAuth"
  certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client "extendedKeyUsage=clientAuth"
  certificate registry "/CN=$PUBLIC" "subjectAltName=DNS:$PUBLIC,IP:$HUB\nextendedKeyUsage=serverAuth"
  kubeconfig controller-manager /CN=system:kube-controller-manager
  kubeconfig scheduler /CN=system:kube-scheduler
  kubeconfig proxy /CN=system:kube-proxy
  for n in "${NODES[@]}"; do kubeconfig "node$n" "/O=system:nodes/CN=system:node:node$n"; done
  kubeconfig admin /O=system:masters/CN=admin
}
