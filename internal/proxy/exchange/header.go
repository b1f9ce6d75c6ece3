package exchange

// Field is one header field, a view.
type Field struct {
	Name, Value []byte
	ID          ID

	gone bool
	// start and end bound the field's line, with its CRLF, in the raw block. end is
	// 0 for a field that was added.
	start, end uint32
}

// Header is the fields of a message in their order. Fields as they were received
// are kept as one raw block of lines, so that passing them on costs a copy for
// each run of unchanged lines; removed fields are left out and added ones follow.
type Header struct {
	raw    []byte
	fields []Field
	// first holds, for each known header, the index of its first field plus 1.
	first [idEnd]uint16
}

// Reset empties h and keeps its memory.
func (h *Header) Reset() {
	h.raw = nil
	h.fields = h.fields[:0]
	clear(h.first[:])
}

// SetRaw begins a received header: raw is its lines, and AddRaw follows for each
// of them. Only codecs call it.
func (h *Header) SetRaw(raw []byte) {
	h.Reset()
	h.raw = raw
}

// AddRaw adds the field whose line is raw[start:end].
func (h *Header) AddRaw(name, value []byte, start, end int) ID {
	id := Identify(name)
	h.AddIdentified(id, name, value, start, end)
	return id
}

// AddIdentified is AddRaw for a name that was identified before.
func (h *Header) AddIdentified(id ID, name, value []byte, start, end int) {
	h.append(Field{Name: name, Value: value, ID: id, start: uint32(start), end: uint32(end)})
}

func (h *Header) append(f Field) {
	h.fields = append(h.fields, f)
	if f.ID != Other && h.first[f.ID] == 0 {
		h.first[f.ID] = uint16(len(h.fields))
	}
}

// Len returns the number of fields, with those removed.
func (h *Header) Len() int { return len(h.fields) }

// At returns the field with index i, or nil if it was removed.
func (h *Header) At(i int) *Field {
	if f := &h.fields[i]; !f.gone {
		return f
	}
	return nil
}

// Get returns the value of the first field with a known name, nil if there is
// none.
func (h *Header) Get(id ID) []byte {
	if i := h.first[id]; i != 0 {
		return h.fields[i-1].Value
	}
	return nil
}

// Has reports whether there is a field with a known name.
func (h *Header) Has(id ID) bool { return h.first[id] != 0 }

// Count returns how many fields have a known name.
func (h *Header) Count(id ID) int {
	n := 0
	if i := int(h.first[id]); i != 0 {
		for i--; i < len(h.fields); i++ {
			if f := &h.fields[i]; f.ID == id && !f.gone {
				n++
			}
		}
	}
	return n
}

// Find returns the value of the first field with this name, which is in lower
// case, and its index, or -1. It looks from index from on.
func (h *Header) Find(name string, from int) ([]byte, int) {
	for i := from; i < len(h.fields); i++ {
		if f := &h.fields[i]; !f.gone && EqualFold(f.Name, name) {
			return f.Value, i
		}
	}
	return nil, -1
}

// Add adds a field. name is in lower case and belongs to id unless that is Other.
// The value must be free of CR, LF and NUL, and live as long as the exchange.
func (h *Header) Add(id ID, name string, value []byte) {
	h.append(Field{Name: bytesOf(name), Value: value, ID: id})
}

// AddString is Add for a text.
func (h *Header) AddString(id ID, name, value string) { h.Add(id, name, bytesOf(value)) }

// Set makes value the only one of a known header.
func (h *Header) Set(id ID, value []byte) {
	h.Del(id)
	h.Add(id, names[id], value)
}

// SetString is Set for a text.
func (h *Header) SetString(id ID, value string) { h.Set(id, bytesOf(value)) }

// Del removes all fields with a known name.
func (h *Header) Del(id ID) {
	i := int(h.first[id])
	if i == 0 {
		return
	}
	for i--; i < len(h.fields); i++ {
		if f := &h.fields[i]; f.ID == id {
			f.gone = true
		}
	}
	h.first[id] = 0
}

// DelName removes all fields whose name equals name but for case.
func (h *Header) DelName(name []byte) {
	if id := Identify(name); id != Other {
		h.Del(id)
		return
	}
	for i := range h.fields {
		if f := &h.fields[i]; f.ID == Other && sameName(f.Name, name) {
			f.gone = true
		}
	}
}

// DelAt removes the field with index i.
func (h *Header) DelAt(i int) {
	f := &h.fields[i]
	if f.gone {
		return
	}
	f.gone = true
	if id := f.ID; id != Other && int(h.first[id]) == i+1 {
		h.first[id] = 0
		for j := i + 1; j < len(h.fields); j++ {
			if g := &h.fields[j]; g.ID == id && !g.gone {
				h.first[id] = uint16(j + 1)
				break
			}
		}
	}
}

// AppendTo appends the fields as lines.
func (h *Header) AppendTo(b []byte) []byte {
	from := uint32(0)
	i := 0
	for ; i < len(h.fields) && h.fields[i].end != 0; i++ {
		if f := &h.fields[i]; f.gone {
			b = append(b, h.raw[from:f.start]...)
			from = f.end
		}
	}
	b = append(b, h.raw[from:]...)
	for ; i < len(h.fields); i++ {
		if f := &h.fields[i]; !f.gone {
			b = append(b, f.Name...)
			b = append(b, ": "...)
			b = append(b, f.Value...)
			b = append(b, "\r\n"...)
		}
	}
	return b
}

func sameName(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
