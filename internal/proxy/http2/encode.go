package http2

import (
	"bytes"
	"hash/maphash"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

// encoder writes header blocks. A field enters the dynamic table when it is seen
// for the second time within a short while: what differs from request to request
// never does, and no list of names has to know what that is. Secrets are never
// indexed, so that nobody who shares the connection can guess at them by the size
// of what is sent. Source: RFC 7541 section 7.1.
//
// Strings are sent as they are: on the way between proxies time is dearer than
// bytes.
type encoder struct {
	tab   table
	pairs index
	names index
	seed  maphash.Seed
	seen  [256]uint32 // hashes of fields lately sent
	// recent holds, for each name that has a slot, the number of the entry that was
	// referred to last, plus 1. Most fields repeat, and are found there unhashed.
	recent [slots]uint32
	lower  []byte

	// update is true if the peer must be told the table's size, and emptied if that
	// was smaller meanwhile.
	update, emptied bool
}

// slot stands for a name: an exchange.ID, or one of these. 0 is every other name.
type slot uint8

const (
	slotPath = slot(exchange.IDs) + iota
	slotAuthority
	slots
)

func (e *encoder) init() {
	e.tab.max = maxTable
	e.seed = maphash.MakeSeed()
}

// index finds entries by a hash, in chains from the newest to the oldest.
type index struct {
	heads [maxEntries]uint8 // an entry's place plus 1
	next  [maxEntries]uint8
	hash  [maxEntries]uint32
}

func (x *index) add(number, hash uint32) {
	place := number % maxEntries
	head := &x.heads[hash%maxEntries]
	x.hash[place], x.next[place] = hash, *head
	*head = uint8(place + 1)
}

// remove takes out the oldest entry, which is the last of its chain.
func (x *index) remove(number uint32) {
	place := number % maxEntries
	p := &x.heads[x.hash[place]%maxEntries]
	for *p != uint8(place+1) {
		p = &x.next[*p-1]
	}
	*p = 0
}

// setMax follows the peer's SETTINGS_HEADER_TABLE_SIZE. Where a smaller size would
// have to be told before the final one, the table is emptied: there are decoders
// that take a second size only for an empty table.
func (e *encoder) setMax(n uint32) {
	n = min(n, maxTable)
	if n == e.tab.max {
		return
	}
	if n < e.tab.max {
		e.tab.max = 0
		e.makeRoom(0)
		e.emptied = true
	}
	e.tab.max, e.update = n, true
}

func (e *encoder) makeRoom(size uint32) {
	for e.tab.live > 0 && e.tab.size+size > e.tab.max {
		oldest := e.tab.oldest()
		e.pairs.remove(oldest)
		e.names.remove(oldest)
		e.tab.evict()
	}
}

// begin begins a block. Source: RFC 7541 section 4.2.
func (e *encoder) begin(b []byte) []byte {
	if e.update {
		if e.emptied && e.tab.max > 0 {
			b = append(b, 0x20)
		}
		b = appendInt(b, 0x20, 5, e.tab.max)
		e.update, e.emptied = false, false
	}
	return b
}

// field appends a field whose name is in lower case.
func (e *encoder) field(b []byte, is slot, name, value []byte, secret bool) []byte {
	byName := uint64(is) * 0x9e3779b97f4a7c15
	if is == 0 {
		byName = maphash.Bytes(e.seed, name)
	}
	if secret {
		b = e.appendName(b, 0x10, 4, name, uint32(byName))
		return appendString(b, value)
	}
	if is != 0 {
		number := e.recent[is] - 1
		if age := e.tab.added - number; age <= e.tab.live && bytes.Equal(e.tab.valueOf(e.tab.entry(number)), value) {
			return appendInt(b, 0x80, 7, uint32(len(static))+age)
		}
	}
	nameHash := uint32(byName)
	hash := uint32((maphash.Bytes(e.seed, value) ^ byName>>32 ^ byName<<32) * 0x9e3779b97f4a7c15 >> 32)
	for at := e.pairs.heads[hash%maxEntries]; at != 0; at = e.pairs.next[at-1] {
		if e.pairs.hash[at-1] != hash {
			continue
		}
		ent := &e.tab.ents[at-1]
		if bytes.Equal(e.tab.valueOf(ent), value) && bytes.Equal(e.tab.nameOf(ent), name) {
			at := e.position(at - 1)
			e.recent[is] = e.tab.added - (at - uint32(len(static))) + 1
			return appendInt(b, 0x80, 7, at)
		}
	}
	size := uint32(len(name) + len(value) + entryOverhead)
	if seen := &e.seen[hash%uint32(len(e.seen))]; *seen != hash || size > e.tab.max/4 {
		*seen = hash
		b = e.appendName(b, 0x00, 4, name, nameHash)
		return appendString(b, value)
	}
	b = e.appendName(b, 0x40, 6, name, nameHash)
	b = appendString(b, value)
	e.makeRoom(size)
	e.pairs.add(e.tab.added, hash)
	e.names.add(e.tab.added, nameHash)
	e.tab.add(name, value, trait{})
	e.recent[is] = e.tab.added
	return b
}

// position returns the index of the entry at a place.
func (e *encoder) position(place uint8) uint32 {
	last := e.tab.added - 1
	return uint32(len(static)) + 1 + (last-uint32(place))%maxEntries
}

// appendName appends the beginning of a literal: its kind and its name.
func (e *encoder) appendName(b []byte, kind byte, bits uint, name []byte, hash uint32) []byte {
	if i := staticNames[string(name)]; i != 0 {
		return appendInt(b, kind, bits, uint32(i))
	}
	for at := e.names.heads[hash%maxEntries]; at != 0; at = e.names.next[at-1] {
		if e.names.hash[at-1] == hash && bytes.Equal(e.tab.nameOf(&e.tab.ents[at-1]), name) {
			return appendInt(b, kind, bits, e.position(at-1))
		}
	}
	return appendString(append(b, kind), name)
}

func appendString(b, s []byte) []byte {
	return append(appendInt(b, 0, 7, uint32(len(s))), s...)
}

// secret reports whether a field is never to be indexed whatever its sender said.
func secret(id exchange.ID, name []byte) bool {
	switch id {
	case exchange.Cookie:
		return true
	case exchange.Other:
		switch string(name) {
		case "authorization", "proxy-authorization", "set-cookie":
			return true
		}
	}
	return false
}

// hopByHop reports whether a field concerns a connection of HTTP/1.1 only. Source:
// RFC 9113 section 8.2.2.
func hopByHop(f *exchange.Field) bool {
	switch f.ID {
	case exchange.Connection, exchange.KeepAlive, exchange.ProxyConnection, exchange.TransferEncoding,
		exchange.Upgrade, exchange.HTTP2Settings, exchange.Host:
		return true
	case exchange.TE:
		return !exchange.EqualFold(f.Value, "trailers")
	}
	return false
}

// head appends a header block.
func (e *encoder) head(b []byte, h *Head) []byte {
	b = e.begin(b)
	switch {
	case h.Status != 0:
		b = e.status(b, h.Status)
	case len(h.Method) > 0:
		b = e.request(b, h)
	}
	if h.Header == nil {
		return b
	}
	for i := range h.Header.Len() {
		f := h.Header.At(i)
		if f == nil || hopByHop(f) {
			continue
		}
		name := e.lowerCase(f.Name)
		b = e.field(b, slot(f.ID), name, f.Value, h.isNever(i) || secret(f.ID, name))
	}
	return b
}

func (e *encoder) request(b []byte, h *Head) []byte {
	switch string(h.Method) {
	case "GET":
		b = append(b, 0x80|staticGET)
	case "POST":
		b = append(b, 0x80|staticPOST)
	default:
		b = e.field(b, 0, []byte(":method"), h.Method, false)
	}
	if len(h.Scheme) > 0 {
		switch string(h.Scheme) {
		case "http":
			b = append(b, 0x80|staticHTTP)
		case "https":
			b = append(b, 0x80|staticHTTPS)
		default:
			b = e.field(b, 0, []byte(":scheme"), h.Scheme, false)
		}
	}
	if len(h.Path) == 1 && h.Path[0] == '/' {
		b = append(b, 0x80|staticPath)
	} else if len(h.Path) > 0 {
		b = e.field(b, slotPath, []byte(":path"), h.Path, false)
	}
	if len(h.Authority) > 0 {
		b = e.field(b, slotAuthority, []byte(":authority"), h.Authority, false)
	}
	if len(h.Protocol) > 0 {
		b = e.field(b, 0, []byte(":protocol"), h.Protocol, false)
	}
	return b
}

func (e *encoder) status(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x80|staticStatus)
	case 204:
		return append(b, 0x80|(staticStatus+1))
	case 206:
		return append(b, 0x80|(staticStatus+2))
	case 304:
		return append(b, 0x80|(staticStatus+3))
	case 400:
		return append(b, 0x80|(staticStatus+4))
	case 404:
		return append(b, 0x80|(staticStatus+5))
	case 500:
		return append(b, 0x80|(staticStatus+6))
	}
	digits := [3]byte{'0' + byte(status/100%10), '0' + byte(status/10%10), '0' + byte(status%10)}
	b = appendInt(b, 0x00, 4, staticStatus)
	b = append(b, 3)
	return append(b, digits[:]...)
}

// lowerCase returns a name in lower case: headers that came by HTTP/1.1 may not be.
func (e *encoder) lowerCase(name []byte) []byte {
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			e.lower = append(e.lower[:0], name...)
			for i, c := range e.lower {
				if 'A' <= c && c <= 'Z' {
					e.lower[i] = c | 0x20
				}
			}
			return e.lower
		}
	}
	return name
}
