{{/* What `helm test` pulls, and from where. */}}

{{/*
The URL from which the test pod pulls: as the nodes do, if a port of the nodes is known, otherwise through the Service. Kubernetes replaces
$(HOST_IP) by the address of the pod's node: a node port answers there in every mode of kube-proxy.
*/}}
{{- define "larder.testUrl" -}}
{{- $port := include "larder.portOnNodes" . | fromYaml -}}
{{- if .Values.test.server -}}
{{- .Values.test.server -}}
{{- else if and $port (include "larder.testUsesHostNetwork" .) -}}
{{- include "larder.url" (merge (dict "scheme" (include "larder.scheme" .)) $port) -}}
{{- else if $port -}}
{{- printf "%s://[$(HOST_IP)]:%d" (include "larder.scheme" .) (int $port.port) -}}
{{- else -}}
{{- printf "%s://%s.%s.svc:%d" (include "larder.scheme" .) (include "larder.fullname" .) .Release.Namespace (int .Values.service.port) -}}
{{- end -}}
{{- end }}

{{/* Whether the test pod uses the network of its node: for a port that may be open on the loopback address of the node only. */}}
{{- define "larder.testUsesHostNetwork" -}}
{{- if and (eq .Values.mode "daemonset") (or .Values.daemonset.hostPort.enabled .Values.daemonset.hostNetwork) }}yes{{ end -}}
{{- end }}

{{/*
Why there is no test pod, for the notes; empty if there is one. Without the certificate or the password of a client, its pull would fail
although Larder works.
*/}}
{{- define "larder.noTest" -}}
{{- $given := include "larder.given" . | fromYaml -}}
{{- $tls := default dict (get $given "serverTlsConfig") -}}
{{- $verifies := or (and .Values.serverTls.enabled (eq (default "none" .Values.serverTls.clientAuth) "verify")) (eq (toString (get $tls "clientAuth")) "verify") -}}
{{- if not .Values.test.enabled -}}
test.enabled is false
{{- else if and $verifies (not (has "--client-cert" .Values.test.extraArgs)) -}}
clients need a certificate: mount one with test.volumes, and name it in test.extraArgs (--client-cert, --client-key, --ca)
{{- else if and (get $given "serverAuthConfig") (not (has "--user" .Values.test.extraArgs)) -}}
clients need a password: mount one with test.volumes, and name it in test.extraArgs (--user, --password-file)
{{- end -}}
{{- end }}

{{/* Whether the image of the test can be pulled only if it was imported, although no registry is contacted. */}}
{{- define "larder.testNeedsImage" -}}
{{- $given := include "larder.given" . | fromYaml -}}
{{- if and (get $given "airGapped") (not (get $given "helloWorld")) (contains "library/hello-world" .Values.test.image) }}yes{{ end -}}
{{- end }}
