// Package bench holds benchmarks of the whole product, as opposed to those of
// one package, which stand beside the code.
package bench
