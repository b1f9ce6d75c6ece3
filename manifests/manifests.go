// Package manifests holds what Heddle is installed with: the Helm charts, whose
// values are Istio's, and the profiles. The files are part of the programs that
// read them, and the same files are what `helm install` takes.
package manifests

import "embed"

// Files are the folders charts and profiles.
//
//go:embed all:charts profiles
var Files embed.FS
