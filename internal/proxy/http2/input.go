package http2

import "sync"

// inSize holds a frame, and what of others comes with it.
const inSize = 32 << 10

var inputs = sync.Pool{New: func() any { return &[inSize]byte{} }}

// input is what was read and not handled yet.
type input struct {
	pooled *[inSize]byte
	b      []byte
	r, w   int
}

// preset begins with bytes that someone else read.
func (in *input) preset(first []byte) {
	if len(first) == 0 {
		return
	}
	if len(first) > inSize/2 {
		in.b = make([]byte, len(first)+inSize)
	} else {
		in.get()
	}
	in.w = copy(in.b, first)
}

func (in *input) get() {
	in.pooled = inputs.Get().(*[inSize]byte)
	in.b = in.pooled[:]
}

// room returns where to read to.
func (in *input) room() []byte {
	if in.b == nil {
		in.get()
	}
	if in.r > 0 {
		in.w = copy(in.b, in.b[in.r:in.w])
		in.r = 0
	}
	return in.b[in.w:]
}

// park gives the memory back if nothing is in it.
func (in *input) park() {
	if in.r < in.w {
		return
	}
	if in.pooled != nil {
		inputs.Put(in.pooled)
	}
	*in = input{}
}
