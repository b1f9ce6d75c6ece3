// Package e2e holds tests on real Kubernetes clusters, under the build tag
// heddle_e2e; package kube, beside it, is what they are written with.
//
// It is a module of its own and requires no other of ours: its client-go is the
// cluster's version whatever the product's is, and tests see the product as users
// do, as images and manifests.
package e2e
