package model

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"google.golang.org/protobuf/proto"
)

// Print is the fingerprint of a value's content: equal prints mean equal
// content. Prints are what cache keys are made of, so they must hold against an
// author who looks for two objects with the same one.
type Print [16]byte

// Printer collects what a print covers. Values are delimited, so that moving
// text from one to the next changes the print.
type Printer struct {
	h   hash.Hash
	buf [8]byte
}

// NewPrinter returns an empty one.
func NewPrinter() *Printer { return &Printer{h: sha256.New()} }

// Text adds strings, and how many they are.
func (p *Printer) Text(values ...string) {
	p.Number(uint64(len(values)))
	for _, v := range values {
		p.Number(uint64(len(v)))
		p.h.Write([]byte(v))
	}
}

// Number adds a number.
func (p *Printer) Number(n uint64) {
	binary.BigEndian.PutUint64(p.buf[:], n)
	p.h.Write(p.buf[:])
}

// Flag adds a truth value.
func (p *Printer) Flag(b bool) {
	if b {
		p.Number(1)
	} else {
		p.Number(0)
	}
}

// Print adds another value's print.
func (p *Printer) Print(v Print) { p.h.Write(v[:]) }

// message adds a protobuf message.
func (p *Printer) message(m proto.Message) {
	// Marshalling fails for invalid UTF-8 only, which decoding has refused.
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	p.Number(uint64(len(b)))
	p.h.Write(b)
}

// labels adds a map in the order of its keys.
func (p *Printer) labels(m map[string]string) {
	p.Number(uint64(len(m)))
	for _, k := range sortedKeys(m) {
		p.Text(k, m[k])
	}
}

// Sum returns the print of what was added so far.
func (p *Printer) Sum() Print {
	var out Print
	copy(out[:], p.h.Sum(nil))
	return out
}
