package life

import (
	"fmt"
	"runtime/debug"
)

// Apart runs f on a goroutine of its own and waits for it. The stack that f needs
// goes when it returns, while that of a goroutine which waits afterwards would keep
// its size. A panic of f is the caller's, with f's stack in its text.
func Apart(f func()) {
	done := make(chan any, 1)
	go func() {
		returned := false
		defer func() {
			if p := recover(); !returned {
				done <- fmt.Sprintf("%v\n%s", p, debug.Stack())
				return
			}
			done <- nil
		}()
		f()
		returned = true
	}()
	if p := <-done; p != nil {
		panic(p)
	}
}
