package life

// version is set by the linker: -X github.com/heddle-mesh/heddle/internal/life.version=v1.2.3
var version = "dev"

// Version returns the version of this build.
func Version() string { return version }
