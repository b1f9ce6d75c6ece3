package http1

import "sync"

const (
	// smallBuffer holds nearly every head, and what of a body comes with it.
	smallBuffer = 16 << 10
	// largeBuffer holds the largest head; bodies that turn out long use one too.
	largeBuffer = 64 << 10
)

// buffer is pooled memory. There is no third size.
type buffer struct {
	b    []byte
	body Body // of the message whose head is in b
}

var (
	smallPool = sync.Pool{New: func() any { return &buffer{b: make([]byte, smallBuffer)} }}
	largePool = sync.Pool{New: func() any { return &buffer{b: make([]byte, largeBuffer)} }}
)

func getSmall() *buffer { return smallPool.Get().(*buffer) }

func getLarge() *buffer { return largePool.Get().(*buffer) }

func (b *buffer) put() {
	if len(b.b) == smallBuffer {
		smallPool.Put(b)
	} else {
		largePool.Put(b)
	}
}
