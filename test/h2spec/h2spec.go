// Package h2spec holds the HTTP/2 codec to the conformance suite of the same name.
// It is a module of its own, so that the suite and what it needs is no dependency
// of ours.
package h2spec
