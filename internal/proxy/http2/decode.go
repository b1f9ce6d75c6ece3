package http2

import (
	"golang.org/x/net/http2/hpack"
)

// decoder reads header blocks into Heads. Nothing is allocated: a Head has the
// bytes in memory of its own, and the dynamic table has its own.
type decoder struct {
	tab       table
	maxList   int // bytes of a header list, as RFC 9113 section 10.5.1 counts them
	maxFields int
}

func (d *decoder) init(maxList, maxFields int) {
	d.tab.max = maxTable
	d.maxList, d.maxFields = maxList, maxFields
}

// arena is memory that a Huffman decoder writes to.
type arena struct{ b []byte }

func (a *arena) Write(p []byte) (int, error) {
	a.b = append(a.b, p...)
	return len(p), nil
}

// decode reads a header block. It reports false if the block can not be understood
// and the tables of the two sides are no longer the same: a connection error.
//
// A list that is too long is read to its end, because the dynamic table must
// follow it; but nothing is kept beyond the limit, so that the work is bounded by
// the block's length, not by what it expands to.
func (d *decoder) decode(h *Head, block []byte) bool {
	h.reset()
	list, fields := 0, 0
	began := false
	for len(block) > 0 {
		switch b := block[0]; {
		case b&0x80 != 0: // indexed
			i, rest, ok := readInt(block, 7)
			if !ok {
				return false
			}
			block = rest
			name, value, e, ok := d.at(i)
			if !ok {
				return false
			}
			var is *trait
			if e != nil {
				is = &e.trait
			} else {
				is = &staticTraits[i-1]
			}
			began = true
			fields++
			list += entryOverhead + len(name) + len(value)
			if e != nil {
				list += int(e.name) + int(e.value)
			}
			if list > d.maxList || fields > d.maxFields {
				h.over = true
				continue
			}
			h.begin(false)
			if e != nil {
				h.text.b = append(h.text.b, d.tab.nameOf(e)...)
				h.middle()
				h.text.b = append(h.text.b, d.tab.valueOf(e)...)
			} else {
				h.text.b = append(h.text.b, name...)
				h.middle()
				h.text.b = append(h.text.b, value...)
			}
			h.end(is)
		case b&0xe0 == 0x20: // table size
			n, rest, ok := readInt(block, 5)
			if !ok || began || n > maxTable {
				return false
			}
			block = rest
			d.tab.max = n
			for d.tab.size > d.tab.max {
				d.tab.evict()
			}
		default:
			bits := uint(4)
			indexing := b&0x40 != 0
			if indexing {
				bits = 6
			}
			i, rest, ok := readInt(block, bits)
			if !ok {
				return false
			}
			block = rest
			began = true
			h.begin(b&0xf0 == 0x10)
			var is trait
			if i > 0 {
				name, _, e, ok := d.at(i)
				if !ok {
					return false
				}
				if e != nil {
					h.text.b = append(h.text.b, d.tab.nameOf(e)...)
					is = e.trait
				} else {
					h.text.b = append(h.text.b, name...)
					is = staticTraits[i-1]
				}
				is.valid = false
			} else if block, ok = readString(&h.text, block); !ok {
				return false
			}
			h.middle()
			if block, ok = readString(&h.text, block); !ok {
				return false
			}
			n, v := h.pending()
			if indexing {
				is = traitOf(n, v)
				d.insert(n, v, is)
			}
			fields++
			list += entryOverhead + len(n) + len(v)
			if list > d.maxList || fields > d.maxFields {
				h.over = true
			}
			if h.over {
				h.drop()
				continue
			}
			h.end(&is)
		}
	}
	return true
}

// at returns the field with an index: of the static table, or an entry.
func (d *decoder) at(i uint32) (name, value string, e *entry, ok bool) {
	if i == 0 {
		return "", "", nil, false
	}
	if int(i) <= len(static) {
		f := &static[i-1]
		return f.name, f.value, nil, true
	}
	if i -= uint32(len(static)) + 1; i >= d.tab.live {
		return "", "", nil, false
	}
	return "", "", d.tab.entry(d.tab.added - 1 - i), true
}

// insert adds to the dynamic table. A field that is larger than the table empties
// it. Source: RFC 7541 section 4.4.
func (d *decoder) insert(name, value []byte, is trait) {
	size := uint32(len(name) + len(value) + entryOverhead)
	for d.tab.live > 0 && d.tab.size+size > d.tab.max {
		d.tab.evict()
	}
	if size <= d.tab.max {
		d.tab.add(name, value, is)
	}
}

// readString appends a string to a. Source: RFC 7541 section 5.2.
func readString(a *arena, p []byte) (rest []byte, ok bool) {
	if len(p) == 0 {
		return nil, false
	}
	huffman := p[0]&0x80 != 0
	n, p, ok := readInt(p, 7)
	if !ok || uint64(n) > uint64(len(p)) {
		return nil, false
	}
	if huffman {
		if _, err := hpack.HuffmanDecode(a, p[:n]); err != nil {
			return nil, false
		}
	} else {
		a.b = append(a.b, p[:n]...)
	}
	return p[n:], true
}
