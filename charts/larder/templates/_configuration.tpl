{{/*
The configuration of Larder: what the values contain, what the chart adds, and what follows from both. Templates return text, so maps
are returned as YAML.
*/}}

{{/* The configuration in the values, as a map. */}}
{{- define "larder.given" -}}
{{- $given := .Values.serverConfig.configuration -}}
{{- if kindIs "string" $given -}}
{{- $parsed := fromYaml $given -}}
{{- if hasKey $parsed "Error" -}}
{{- fail (printf "serverConfig.configuration is not valid YAML: %s" (get $parsed "Error")) -}}
{{- end -}}
{{- toYaml $parsed -}}
{{- else -}}
{{- toYaml (default dict $given) -}}
{{- end -}}
{{- end }}

{{/* A duration, e.g. 1h30m, in seconds. */}}
{{- define "larder.seconds" -}}
{{- $units := dict "ns" 0.000000001 "us" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9]+(ns|us|ms|s|m|h|d)" (toString .) -1 -}}
{{- $sum = addf $sum (mulf (regexFind "^[0-9]+" . | float64) (get $units (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{- $sum -}}
{{- end }}

{{/* A Kubernetes quantity, e.g. 1.5Gi, in bytes. */}}
{{- define "larder.bytes" -}}
{{- $units := dict "" 1.0 "k" 1000.0 "M" 1000000.0 "G" 1000000000.0 "T" 1000000000000.0 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .)) -}}
{{- end }}

{{/* The size limit of the emptyDir. Helm parses a plain number as a float, which would be printed as 1e+09. */}}
{{- define "larder.sizeLimit" -}}
{{- with .Values.persistence.emptyDir.sizeLimit -}}
{{- ternary . (toString (int64 .)) (kindIs "string" .) -}}
{{- end -}}
{{- end }}

{{/* The value objectStore without what is empty. */}}
{{- define "larder.objectStoreValue" -}}
{{- $set := dict -}}
{{- range $key, $value := .Values.objectStore -}}
  {{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) -}}{{- $_ := set $set $key $value -}}{{- end -}}
{{- end -}}
{{- if and $set (not $set.bucket) -}}
{{- fail "objectStore needs objectStore.bucket" -}}
{{- end -}}
{{- toYaml $set -}}
{{- end }}

{{/* The key objectStore that the chart adds to the configuration, with the path of the mounted authority; empty without a bucket. */}}
{{- define "larder.objectStore" -}}
{{- $set := include "larder.objectStoreValue" . | fromYaml -}}
{{- $of := omit $set "existingSecret" "accessKeyIdKey" "secretAccessKeyKey" "caFrom" -}}
{{- with $set.caFrom -}}
  {{- if eq (empty .configMap) (empty .secret) -}}
  {{- fail "objectStore.caFrom needs either configMap or secret, the name of an object with the authority of the store" -}}
  {{- end -}}
  {{- if (default dict $set.tls).ca -}}
  {{- fail "objectStore.caFrom and objectStore.tls.ca conflict: remove one of them" -}}
  {{- end -}}
  {{- $_ := set $of "tls" (merge (dict "ca" (printf "/run/secrets/object-store/%s" (default "ca.crt" .key))) (default dict $set.tls)) -}}
{{- end -}}
{{- with $of }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* The bucket to which all pods upload what they have, whether the values or the configuration name it; empty if there is none. */}}
{{- define "larder.sharedBucket" -}}
{{- $given := default dict (get (include "larder.given" . | fromYaml) "objectStore") -}}
{{- $store := default $given (include "larder.objectStore" . | fromYaml) -}}
{{- if not $store.readOnly }}{{ default "" $store.bucket }}{{ end -}}
{{- end }}

{{/*
The environment variables of the Larder container. The keys of the bucket are in variables, because the configuration cannot read the access key
id from a file.
*/}}
{{- define "larder.env" -}}
{{- $all := list -}}
{{- $set := include "larder.objectStoreValue" . | fromYaml -}}
{{- $names := dict "AWS_ACCESS_KEY_ID" (default "accessKeyId" $set.accessKeyIdKey) "AWS_SECRET_ACCESS_KEY" (default "secretAccessKey" $set.secretAccessKeyKey) -}}
{{- with $set.existingSecret -}}
  {{- if $set.profile -}}
  {{- fail "objectStore.existingSecret and objectStore.profile conflict: with a profile, Larder uses only the keys of that profile" -}}
  {{- end -}}
  {{- range $.Values.env -}}
    {{- if hasKey $names .name -}}
    {{- fail (printf "objectStore.existingSecret and %s in env conflict: remove one of them" .name) -}}
    {{- end -}}
  {{- end -}}
  {{- range $name, $key := $names -}}
  {{- $all = append $all (dict "name" $name "valueFrom" (dict "secretKeyRef" (dict "name" $set.existingSecret "key" $key))) -}}
  {{- end -}}
{{- else -}}
  {{- if or $set.accessKeyIdKey $set.secretAccessKeyKey -}}
  {{- fail "objectStore.accessKeyIdKey and objectStore.secretAccessKeyKey need objectStore.existingSecret, the name of the secret" -}}
  {{- end -}}
{{- end -}}
{{- with concat $all (default list .Values.env) }}{{ toYaml . }}{{ end -}}
{{- end }}

{{- define "larder.usesEmptyDir" -}}
{{- if not (or .Values.persistence.persistentVolumeClaim.enabled .Values.persistence.hostPath.enabled) }}yes{{ end -}}
{{- end }}

{{/*
The keys that the chart adds to the configuration: the paths of the mounted TLS secret, the peers, the parents and the bucket, a cacheSize below the size limit of the
emptyDir, which Kubernetes would otherwise evict the pod for exceeding, a drainTimeout that ends before Kubernetes kills the pod, a drain
that hands the ports over where two pods of a node can listen on them, and one that serves where the next pod starts only when this one has
ended.
*/}}
{{- define "larder.added" -}}
{{- $given := include "larder.given" . | fromYaml -}}
{{- $added := dict -}}
{{- $tls := .Values.serverTls -}}
{{- if $tls.enabled -}}
  {{- if get $given "serverTlsConfig" -}}
  {{- fail "serverTls.enabled and serverConfig.configuration.serverTlsConfig conflict: remove one of them" -}}
  {{- end -}}
  {{- if not (or $tls.secretName (and $tls.cert $tls.key)) -}}
  {{- fail "serverTls.enabled needs serverTls.secretName, or serverTls.cert and serverTls.key (helm … --set-file serverTls.cert=tls.crt)" -}}
  {{- end -}}
  {{- $of := dict "cert" "/run/secrets/tls/tls.crt" "key" "/run/secrets/tls/tls.key" -}}
  {{- if eq (default "none" $tls.clientAuth) "verify" -}}
    {{- if not (or $tls.secretName $tls.ca) -}}
    {{- fail "serverTls.clientAuth: verify needs serverTls.ca: the image does not contain the CA certificates of an operating system" -}}
    {{- end -}}
    {{- $_ := set $of "clientAuth" "verify" -}}
    {{- $_ := set $of "ca" "/run/secrets/tls/ca.crt" -}}
  {{- end -}}
  {{- $_ := set $added "serverTlsConfig" $of -}}
{{- end -}}
{{- if .Values.peers.enabled -}}
  {{- $name := printf "%s.%s.svc" (include "larder.peers" .) .Release.Namespace -}}
  {{- if get $given "peers" -}}
  {{- fail "peers.enabled and serverConfig.configuration.peers conflict: remove one of them" -}}
  {{- end -}}
  {{- if or $tls.enabled (get $given "serverTlsConfig") -}}
  {{- fail (printf "peers.enabled needs the serving port without TLS. With it, set serverConfig.configuration.peers instead: {dns: %s, scheme: https, tls: {ca: …}}, with a certificate that also names %s" $name $name) -}}
  {{- end -}}
  {{- if get $given "serverAuthConfig" -}}
  {{- fail (printf "peers.enabled knows no user of serverConfig.configuration.serverAuthConfig: set serverConfig.configuration.peers instead: {dns: %s, auth: {user: …, passwordFile: …}}" $name) -}}
  {{- end -}}
  {{- if include "larder.usesHostNetwork" . -}}
  {{- fail "peers.enabled needs the DNS of the cluster, which pods in the network of a node (daemonset.hostNetwork) do not use" -}}
  {{- end -}}
  {{- $_ := set $added "peers" (dict "dns" $name "port" (int64 (include "larder.ports" . | fromYaml).http)) -}}
{{- end -}}
{{- with .Values.parents -}}
  {{- if get $given "parents" -}}
  {{- fail "parents and serverConfig.configuration.parents conflict: remove one of them" -}}
  {{- end -}}
  {{- $_ := set $added "parents" . -}}
{{- end -}}
{{- with include "larder.objectStore" . | fromYaml -}}
  {{- if get $given "objectStore" -}}
  {{- fail "objectStore and serverConfig.configuration.objectStore conflict: remove one of them" -}}
  {{- end -}}
  {{- $_ := set $added "objectStore" . -}}
{{- end -}}
{{- $limit := include "larder.sizeLimit" . -}}
{{- if and (include "larder.usesEmptyDir" .) $limit (not (get $given "cacheSize")) (not (get $given "freeSpace")) -}}
  {{- $_ := set $added "cacheSize" (printf "%dMB" (divf (include "larder.bytes" $limit | float64) 1000000.0 | mulf 0.85 | int64)) -}}
{{- end -}}
{{- $has := sub (int64 .Values.terminationGracePeriodSeconds) (int64 .Values.preStopSleepSeconds) -}}
{{- $drain := get $given "drainTimeout" -}}
{{- if $drain -}}
  {{- if le (float64 $has) (include "larder.seconds" $drain | float64) -}}
  {{- fail (printf "terminationGracePeriodSeconds (%d) must be more than preStopSleepSeconds (%d) and serverConfig.configuration.drainTimeout (%s) together: otherwise Kubernetes kills the pod while it drains" (int64 .Values.terminationGracePeriodSeconds) (int64 .Values.preStopSleepSeconds) $drain) -}}
  {{- end -}}
{{- else if le $has 60 -}}
  {{- if lt $has 2 -}}
  {{- fail (printf "terminationGracePeriodSeconds (%d) leaves no time to drain after preStopSleepSeconds (%d)" (int64 .Values.terminationGracePeriodSeconds) (int64 .Values.preStopSleepSeconds)) -}}
  {{- end -}}
  {{- $_ := set $added "drainTimeout" (printf "%ds" (max 1 (sub $has 5))) -}}
{{- end -}}
{{- $isAlone := or (ne .Values.mode "deployment") (include "larder.recreates" .) -}}
{{- if and $isAlone (not (get $given "drain")) -}}
  {{- $_ := set $added "drain" (ternary "handover" "serve" (eq "yes" (include "larder.usesHostNetwork" .))) -}}
{{- end -}}
{{- toYaml $added -}}
{{- end }}

{{/* The text of the configuration file; empty if all keys have their default. */}}
{{- define "larder.configuration" -}}
{{- $given := .Values.serverConfig.configuration -}}
{{- $added := include "larder.added" . | fromYaml -}}
{{- /* The chart adds a key whose value is empty, which must not be in the file twice. */}}
{{- $isTwice := false -}}
{{- range $key, $_ := include "larder.given" . | fromYaml -}}
  {{- if hasKey $added $key -}}{{- $isTwice = true -}}{{- end -}}
{{- end -}}
{{- if kindIs "string" $given -}}
  {{- if and $added (or $isTwice (hasPrefix "{" (trim $given))) -}}
{{- toYaml (merge dict $added (fromYaml $given)) -}}
  {{- else -}}
{{- trimSuffix "\n" $given -}}
{{- with $added }}
# Added by the chart.
{{ toYaml . }}
{{- end -}}
  {{- end -}}
{{- else -}}
{{- range $key, $_ := $added -}}{{- $given = omit (default dict $given) $key -}}{{- end -}}
{{- with $given }}{{ toYaml . }}{{ end -}}
{{- with $added }}
# Added by the chart.
{{ toYaml . }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The directory of the cache: imagePath of the configuration, else the mount path of the volume `images`, else the default. */}}
{{- define "larder.imagePath" -}}
{{- $path := get (include "larder.given" . | fromYaml) "imagePath" -}}
{{- range .Values.volumeMounts -}}
  {{- if eq .name "images" -}}
    {{- if not $path -}}{{- $path = .mountPath -}}{{- end -}}
    {{- if not (or (eq .mountPath $path) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $path)) -}}
    {{- fail (printf "serverConfig.configuration.imagePath (%s) is not in the volume images, which volumeMounts mounts at %s: the cache would be deleted with the container" $path .mountPath) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- default "/var/lib/larder" $path -}}
{{- end }}

{{- define "larder.isLoopback" -}}
{{- if or (hasPrefix "127." (toString .)) (eq "::1" (toString .)) }}yes{{ end -}}
{{- end }}

{{- define "larder.usesHostNetwork" -}}
{{- if and (eq .Values.mode "daemonset") .Values.daemonset.hostNetwork }}yes{{ end -}}
{{- end }}

{{/* Whether Larder listens on the node itself and shares its ports with its successor. */}}
{{- define "larder.handsOver" -}}
{{- if and (include "larder.usesHostNetwork" .) (eq "handover" (default "handover" (get (include "larder.given" . | fromYaml) "drain"))) }}yes{{ end -}}
{{- end }}

{{- define "larder.updateStrategy" -}}
{{- $isAlone := or .Values.daemonset.hostPort.enabled (and .Values.daemonset.hostNetwork (not (include "larder.handsOver" .))) -}}
{{- $rolling := ternary (dict "maxUnavailable" 1) (dict "maxSurge" 1 "maxUnavailable" 0) $isAlone -}}
{{- toYaml (default (dict "type" "RollingUpdate" "rollingUpdate" $rolling) .Values.daemonset.updateStrategy) -}}
{{- end }}

{{/* How many more pods of the daemon set than nodes an update starts; empty if none. */}}
{{- define "larder.maxSurge" -}}
{{- $surge := toString (default 0 (default dict (include "larder.updateStrategy" . | fromYaml).rollingUpdate).maxSurge) -}}
{{- if not (has $surge (list "0" "0%")) }}{{ $surge }}{{ end -}}
{{- end }}

{{/* Whether two pods of the daemon set are on a node during an update. Then they must not declare ports, which the scheduler would reserve. */}}
{{- define "larder.surges" -}}
{{- if and (include "larder.handsOver" .) (include "larder.maxSurge" .) }}yes{{ end -}}
{{- end }}

{{/*
The ports: `http`, `health` (0 without probes), `metrics` (0 if disabled) and `management` (0 if disabled or only on loopback).
`flags` are the command-line options for ports that the configuration does not set. `host` is the address for probes if Larder
listens on loopback only, otherwise empty.
*/}}
{{- define "larder.ports" -}}
{{- $given := include "larder.given" . | fromYaml -}}
{{- $host := default "0.0.0.0" (get $given "host") -}}
{{- if include "larder.isLoopback" $host -}}
  {{- if not (include "larder.usesHostNetwork" .) -}}
  {{- fail (printf "serverConfig.configuration.host (%s) is loopback: clients outside the pod could not reach Larder" $host) -}}
  {{- end -}}
  {{- if and .Values.observability.enabled .Values.observability.serviceMonitor.enabled -}}
  {{- fail (printf "serverConfig.configuration.host (%s) is loopback: Prometheus could not reach the metrics" $host) -}}
  {{- end -}}
{{- end -}}
{{- $management := default dict (get $given "management") -}}
{{- $managed := int (default 0 (get $management "port")) -}}
{{- $open := 0 -}}
{{- if not (include "larder.isLoopback" (default "127.0.0.1" (get $management "host"))) -}}{{- $open = $managed -}}{{- end -}}
{{- $http := int (default 8080 (get $given "port")) -}}
{{- $flags := list -}}
{{- $health := int (default 0 (get $given "health")) -}}
{{- if .Values.health.port -}}
  {{- $health = int .Values.health.port -}}
  {{- $flags = concat $flags (list "--health" (toString $health)) -}}
{{- else if and (not $health) $open -}}
  {{- $health = $open -}}
{{- else if and (not $health) .Values.probes.enabled -}}
  {{- $health = 8081 -}}
  {{- $flags = concat $flags (list "--health" "8081") -}}
{{- end -}}
{{- $metrics := int (default 0 (get $given "metrics")) -}}
{{- if .Values.metrics.port -}}
  {{- $metrics = int .Values.metrics.port -}}
  {{- $flags = concat $flags (list "--metrics" (toString $metrics)) -}}
{{- else if not $metrics -}}
  {{- $metrics = $open -}}
{{- end -}}
{{- range $name, $port := dict "health" $health "metrics" $metrics "management.port" $managed -}}
  {{- if and $port (eq $port $http) -}}
  {{- fail (printf "%s is %d, which is also serverConfig.configuration.port" $name $port) -}}
  {{- end -}}
{{- end -}}
{{- range $name, $port := dict "health" $health "metrics" $metrics -}}
  {{- if and $managed (eq $port $managed) (not (eq $port $open)) -}}
  {{- fail (printf "%s is %d, which is also serverConfig.configuration.management.port" $name $port) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.observability.enabled .Values.observability.serviceMonitor.enabled (not $metrics) -}}
{{- fail "observability.enabled needs a port for metrics: set metrics.port=2112 or serverConfig.configuration.metrics" -}}
{{- end -}}
{{- toYaml (dict "http" $http "health" $health "metrics" $metrics "management" $open "flags" $flags "host" (ternary $host "" (eq "yes" (include "larder.isLoopback" $host)))) -}}
{{- end }}

{{/* The URL scheme that clients use. */}}
{{- define "larder.scheme" -}}
{{- ternary "https" "http" (or .Values.serverTls.enabled (hasKey (include "larder.given" . | fromYaml) "serverTlsConfig")) -}}
{{- end }}

{{/*
The port on the nodes at which Larder answers, with its address there; empty if the values do not determine it. `only` is set if Larder
answers at no other address of the node.
*/}}
{{- define "larder.portOnNodes" -}}
{{- $hostPort := .Values.daemonset.hostPort -}}
{{- if include "larder.usesHostNetwork" . -}}
{{- $ports := include "larder.ports" . | fromYaml -}}
{{- toYaml (dict "address" (default "127.0.0.1" $ports.host) "port" (int $ports.http) "only" (ternary "serverConfig.configuration.host" "" (ne $ports.host ""))) -}}
{{- else if and (eq .Values.mode "daemonset") $hostPort.enabled -}}
{{- $ip := default "" $hostPort.hostIP -}}
{{- $all := has $ip (list "" "0.0.0.0" "::") -}}
{{- toYaml (dict "address" (ternary "127.0.0.1" $ip $all) "port" (int $hostPort.port) "only" (ternary "" "daemonset.hostPort.hostIP" $all)) -}}
{{- else if and (eq .Values.service.type "NodePort") .Values.service.nodePort -}}
{{- toYaml (dict "address" "127.0.0.1" "port" (int .Values.service.nodePort) "only" "") -}}
{{- end -}}
{{- end }}

{{/* A URL with an address, which may be an IPv6 address. */}}
{{- define "larder.url" -}}
{{- printf "%s://%s:%d" .scheme (ternary (printf "[%s]" .address) .address (contains ":" .address)) (int .port) -}}
{{- end }}

{{/* The URL at which nodes reach Larder; empty if the values do not determine it. */}}
{{- define "larder.nodeUrl" -}}
{{- $scheme := include "larder.scheme" . -}}
{{- $port := include "larder.portOnNodes" . | fromYaml -}}
{{- if $port -}}
{{- include "larder.url" (merge (dict "scheme" $scheme) $port) -}}
{{- else if and .Values.service.clusterIP (ne .Values.service.clusterIP "None") -}}
{{- include "larder.url" (dict "scheme" $scheme "address" .Values.service.clusterIP "port" .Values.service.port) -}}
{{- end -}}
{{- end }}

{{/*
The URL that configureNodes writes. Kubernetes replaces $(HOST_IP) in the arguments of a container by the address of its node, which may
be an IPv6 address, and `larder hosts-toml` removes the brackets of an IPv4 address.
*/}}
{{- define "larder.configuredUrl" -}}
{{- $address := default "" .Values.configureNodes.address -}}
{{- if and $address .Values.configureNodes.server -}}
{{- fail "configureNodes.address and configureNodes.server conflict: remove one of them" -}}
{{- end -}}
{{- if $address -}}
  {{- $port := include "larder.portOnNodes" . | fromYaml -}}
  {{- if not $port -}}
  {{- fail "configureNodes.address needs a port on the nodes: set service.type: NodePort with service.nodePort, or daemonset.hostPort.enabled; or set configureNodes.server" -}}
  {{- end -}}
  {{- if and $port.only (ne $address $port.address) -}}
  {{- fail (printf "configureNodes.address (%s): Larder answers only at %s (%s)" $address $port.address $port.only) -}}
  {{- end -}}
  {{- if eq $address "HOST_IP" -}}{{- $address = "[$(HOST_IP)]" -}}
  {{- else if contains ":" $address -}}{{- $address = printf "[%s]" $address -}}
  {{- end -}}
{{- printf "%s://%s:%d" (include "larder.scheme" .) $address (int $port.port) -}}
{{- else -}}
{{- default (include "larder.nodeUrl" .) .Values.configureNodes.server -}}
{{- end -}}
{{- end }}
