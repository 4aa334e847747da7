{{- define "baton.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "baton.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "baton.keySecret" -}}
{{ .Values.clusterKey.existingSecret | default (printf "%s-key" (include "baton.fullname" .)) }}
{{- end }}

{{- /* Names of the secrets with certificates; empty: no TLS. */ -}}
{{- define "baton.clusterTls" -}}
{{- .Values.tls.cluster.existingSecret | default (ternary (printf "%s-cluster-tls" (include "baton.fullname" .)) "" .Values.tls.certManager.enabled) -}}
{{- end }}

{{- define "baton.clientTls" -}}
{{- .Values.tls.clients.existingSecret | default (ternary (printf "%s-client-tls" (include "baton.fullname" .)) "" .Values.tls.certManager.enabled) -}}
{{- end }}

{{- define "baton.clientTlsArgs" -}}
{{- if include "baton.clientTls" . }}
- --tls-cert=/etc/baton/client-tls/tls.crt
- --tls-key=/etc/baton/client-tls/tls.key
{{- end }}
{{- end }}

{{- define "baton.clusterTlsArgs" -}}
{{- if include "baton.clusterTls" . }}
- --cluster-tls=/etc/baton/cluster-tls
{{- end }}
{{- end }}

{{- /* Of a pod with doors. */ -}}
{{- define "baton.clientTlsMounts" -}}
{{- if include "baton.clientTls" . }}
- {name: client-tls, mountPath: /etc/baton/client-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "baton.clientTlsVolumes" -}}
{{- with include "baton.clientTls" . }}
- name: client-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "baton.httpScheme" -}}
{{ ternary "HTTPS" "HTTP" (not (empty (include "baton.clientTls" .))) }}
{{- end }}

{{- /* Of every pod. */ -}}
{{- define "baton.podSecurity" -}}
serviceAccountName: {{ include "baton.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurity.runAsUser }}
  runAsGroup: {{ .Values.podSecurity.runAsGroup }}
  fsGroup: {{ .Values.podSecurity.runAsGroup }}
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Workers over RDMA pin the memory that they register. */ -}}
{{- define "baton.workerSecurity" -}}
{{ include "baton.containerSecurity" . }}
{{- if .Values.workers.rdma.resource }}
  add: [IPC_LOCK]
{{- end }}
{{- end }}

{{- define "baton.env" -}}
- name: BATON_CLUSTER_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "baton.keySecret" . }}, key: {{ .Values.clusterKey.key }}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /cache/hub}
- {name: TRITON_CACHE_DIR, value: /cache/triton}
{{- if not .Values.networkPolicy.allowHub }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}

{{- define "baton.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
{{- if .Values.model.volume.existingClaim }}
- {name: models, mountPath: {{ .Values.model.volume.mountPath }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "baton.clusterTlsMounts" -}}
{{- if include "baton.clusterTls" . }}
- {name: cluster-tls, mountPath: /etc/baton/cluster-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "baton.clusterTlsVolumes" -}}
{{- with include "baton.clusterTls" . }}
- name: cluster-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "baton.volumes" -}}
- name: tmp
  emptyDir: {}
- name: cache
  {{- if or .Values.model.cache.existingClaim .Values.model.cache.size }}
  persistentVolumeClaim:
    claimName: {{ .Values.model.cache.existingClaim | default (printf "%s-cache" (include "baton.fullname" .)) }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- with .Values.model.volume.existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- end }}

{{- /* Requests and limits of a worker, its devices included. Takes (dict "root" $ "resources" ...). */ -}}
{{- define "baton.workerResources" -}}
{{- $workers := .root.Values.workers -}}
{{- $devices := dict -}}
{{- if $workers.gpu.count }}{{ $_ := set $devices $workers.gpu.resource ($workers.gpu.count | toString) }}{{ end -}}
{{- if $workers.rdma.resource }}{{ $_ := set $devices $workers.rdma.resource ($workers.rdma.count | toString) }}{{ end -}}
requests: {{ merge (dict) $devices .resources.requests | toYaml | nindent 2 }}
limits: {{ merge (dict) $devices (.resources.limits | default dict) | toYaml | nindent 2 }}
{{- end }}

{{- define "baton.modelName" -}}
{{ .Values.model.name | default (base .Values.model.id) }}
{{- end }}

{{- define "baton.modelArgs" -}}
- --model={{ .Values.model.id }}
- --model-name={{ include "baton.modelName" . }}
{{- with .Values.model.maxModelLen }}
- --max-model-len={{ . | int64 }}
{{- end }}
{{- end }}

{{- /* CONFIG.yaml of `baton up`, from the values that the plain mode has, too; ray.config has the last word. */ -}}
{{- define "baton.fleetConfig" -}}
{{- $workers := .Values.workers -}}
{{- $ray := .Values.ray -}}
{{- $onGpus := and (eq $workers.device "auto") $workers.gpu.count -}}
{{- $engine := dict "device" (ternary "cuda" $workers.device (not (empty $onGpus))) "dtype" $workers.dtype -}}
{{- $_ := set $engine "max_step_tokens" ($workers.prefill.maxStepTokens | int64) -}}
{{- $_ := set $engine "max_rows" ($workers.decode.maxRows | int64) -}}
{{- with .Values.model.maxModelLen }}{{ $_ := set $engine "max_model_len" (. | int64) }}{{ end -}}
{{- with $workers.pageSize }}{{ $_ := set $engine "page_size" (. | int64) }}{{ end -}}
{{- with $workers.prefill.kvMemory }}{{ $_ := set $engine "kv_memory" (. | toString) }}{{ end -}}
{{- $pools := dict -}}
{{- range $pool, $shape := $ray.pools }}
{{- $_ := set $pools $pool (merge (dict) $shape (dict "transport" $workers.transport)) }}
{{- end -}}
{{- $drain := .Values.router.drainSeconds | int64 -}}
{{- $routers := dict "host" "0.0.0.0" "port" 8000 "grpc_port" 8001 "policy" .Values.router.policy "drain_s" $drain -}}
{{- $config := dict "name" (include "baton.fullname" .) "model" .Values.model.id "model_name" (include "baton.modelName" .) -}}
{{- $_ := set $config "engine" $engine -}}
{{- $_ := set $config "pools" $pools -}}
{{- $_ := set $config "routers" $routers -}}
{{- $_ := set $config "drain_s" ($workers.drainSeconds | int64) -}}
{{- $tls := dict -}}
{{- if include "baton.clusterTls" . }}{{ $_ := set $tls "cluster" "/etc/baton/cluster-tls" }}{{ end -}}
{{- if include "baton.clientTls" . -}}
{{- $_ := set $tls "cert" "/etc/baton/client-tls/tls.crt" -}}
{{- $_ := set $tls "key" "/etc/baton/client-tls/tls.key" -}}
{{- end -}}
{{- if $tls }}{{ $_ := set $config "tls" $tls }}{{ end -}}
{{- with $ray.autoscale }}{{ $_ := set $config "autoscale" . }}{{ end -}}
{{ mergeOverwrite $config $ray.config | toYaml }}
{{- end }}
