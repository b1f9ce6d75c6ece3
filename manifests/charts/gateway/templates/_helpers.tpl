{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{- define "gateway.account" -}}
{{ .Values.serviceAccount.name | default (ternary (include "gateway.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* gateway.selector: a release istio-ingressgateway is istio: ingressgateway. */}}
{{- define "gateway.selector" -}}
app: {{ (.Values.labels.app | default (include "gateway.name" .)) | quote }}
istio: {{ (.Values.labels.istio | default (include "gateway.name" . | trimPrefix "istio-")) | quote }}
{{- end }}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
{{- range $k, $v := omit .Values.labels "app" "istio" }}
{{ $k }}: {{ $v | quote }}
{{- end }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/part-of: istio
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
