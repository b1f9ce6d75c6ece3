{{/* istiod.name is the name of everything namespaced: istiod, or istiod-REVISION. */}}
{{- define "istiod.name" -}}
istiod{{ with .Values.revision }}-{{ . }}{{ end }}
{{- end }}

{{/* istiod.rev is the revision that the control plane answers to. */}}
{{- define "istiod.rev" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{/* istiod.suffix ends the names of ConfigMaps. */}}
{{- define "istiod.suffix" -}}
{{ with .Values.revision }}-{{ . }}{{ end }}
{{- end }}

{{/* istiod.clusterName is the name of what is cluster-wide: -NAMESPACE ends it. */}}
{{- define "istiod.clusterName" -}}
{{ include "istiod.name" . }}-{{ .Release.Namespace }}
{{- end }}

{{- define "istiod.selector" -}}
app: istiod
{{- if .Values.revision }}
istio.io/rev: {{ include "istiod.rev" . | quote }}
{{- else }}
istio: pilot
{{- end }}
{{- end }}

{{- define "istiod.labels" -}}
app: istiod
istio.io/rev: {{ include "istiod.rev" . | quote }}
release: {{ .Release.Name }}
operator.istio.io/component: Pilot
app.kubernetes.io/name: istiod
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "istiod.discoveryAddress" -}}
{{ .Values.global.remotePilotAddress | default (printf "%s.%s.svc" (include "istiod.name" .) .Release.Namespace) }}:15012
{{- end }}

{{/* istiod.mesh is the mesh's settings: what the values say, over what must be. */}}
{{- define "istiod.mesh" -}}
{{- $mesh := deepCopy .Values.meshConfig }}
{{- $proxy := dict "discoveryAddress" (include "istiod.discoveryAddress" .) }}
{{- with .Values.global.meshID }}{{ $_ := set $proxy "meshId" . }}{{ end }}
{{- $must := dict "defaultConfig" $proxy "rootNamespace" (.Values.global.istioNamespace) "trustDomain" "cluster.local" "defaultProviders" (dict "metrics" (list "prometheus")) }}
{{- toYaml (mergeOverwrite $must $mesh) }}
{{- end }}

{{/* istiod.spread is what a webhook of the injector has beside its selectors. */}}
{{- define "istiod.injector" -}}
clientConfig:
  {{- if .Values.istiodRemote.injectionURL }}
  url: {{ .Values.istiodRemote.injectionURL | quote }}
  {{- else }}
  service:
    name: {{ include "istiod.name" . }}
    namespace: {{ .Release.Namespace }}
    path: {{ .Values.istiodRemote.injectionPath | quote }}
    port: 443
  {{- end }}
  {{- with .Values.istiodRemote.injectionCABundle }}
  caBundle: {{ . | quote }}
  {{- end }}
sideEffects: None
rules:
- operations: [CREATE]
  apiGroups: [""]
  apiVersions: [v1]
  resources: [pods]
# Only pods that are labelled for it, or whose namespace is, meet this webhook:
# failing can not stop what keeps the cluster alive.
failurePolicy: Fail
reinvocationPolicy: {{ .Values.sidecarInjectorWebhook.reinvocationPolicy }}
admissionReviewVersions: [v1]
timeoutSeconds: 10
{{- end }}

{{- define "istiod.notSystem" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [kube-system, kube-public, kube-node-lease, local-path-storage]
{{- end }}

{{/*
istiod.webhooks are the injector's webhooks for one name: a revision, or a tag.
Their selectors exclude each other, so that a pod meets one of them at most.
*/}}
{{- define "istiod.webhooks" -}}
{{- $root := .root }}
- name: rev.namespace.sidecar-injector.istio.io
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: In, values: [{{ .tag | quote }}]}
    - {key: istio-injection, operator: DoesNotExist}
    {{- include "istiod.notSystem" $root | nindent 4 }}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
  {{- include "istiod.injector" $root | nindent 2 }}
- name: rev.object.sidecar-injector.istio.io
  namespaceSelector:
    matchExpressions:
    - {key: istio.io/rev, operator: DoesNotExist}
    - {key: istio-injection, operator: DoesNotExist}
    {{- include "istiod.notSystem" $root | nindent 4 }}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
    - {key: istio.io/rev, operator: In, values: [{{ .tag | quote }}]}
  {{- include "istiod.injector" $root | nindent 2 }}
{{- if eq .tag "default" }}
- name: namespace.sidecar-injector.istio.io
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: In, values: [enabled]}
    {{- include "istiod.notSystem" $root | nindent 4 }}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
  {{- include "istiod.injector" $root | nindent 2 }}
- name: object.sidecar-injector.istio.io
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
    {{- include "istiod.notSystem" $root | nindent 4 }}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: In, values: ["true"]}
    - {key: istio.io/rev, operator: DoesNotExist}
  {{- include "istiod.injector" $root | nindent 2 }}
{{- if $root.Values.sidecarInjectorWebhook.enableNamespacesByDefault }}
- name: auto.sidecar-injector.istio.io
  namespaceSelector:
    matchExpressions:
    - {key: istio-injection, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
    {{- include "istiod.notSystem" $root | nindent 4 }}
  objectSelector:
    matchExpressions:
    - {key: sidecar.istio.io/inject, operator: DoesNotExist}
    - {key: istio.io/rev, operator: DoesNotExist}
  {{- include "istiod.injector" $root | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
