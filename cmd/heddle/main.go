// Command heddle runs a mesh on this machine and looks into it.
package main

import (
	"context"
	"os"
	"runtime"

	"github.com/heddle-mesh/heddle/internal/cli"
)

// The main goroutine stays on the main thread. The kernel ends a local mesh when
// the thread that began it ends, and inside the mesh no other goroutine may move
// the main thread to another namespace.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
