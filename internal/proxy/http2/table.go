package http2

import "github.com/heddle-mesh/heddle/internal/proxy/exchange"

// maxTable is the size of dynamic tables, ours and what we use of a peer's. Source:
// RFC 9113 section 6.5.2, the initial value.
const maxTable = 4096

const (
	// entryOverhead is what an entry costs beside its bytes. Source: RFC 7541
	// section 4.1.
	entryOverhead = 32
	maxEntries    = maxTable / entryOverhead
)

// entry is a field of a dynamic table; its bytes are in the table's memory.
type entry struct {
	at          uint32 // where the name begins; the value follows it
	name, value uint16 // lengths: an entry is smaller than the table
	trait
}

// trait is what is known of a field beside its bytes. An entry of a table keeps it for
// all the times that the entry is referred to.
type trait struct {
	id exchange.ID // of the name, if named
	// named says that name and id were found, and that the name is right; valid, that
	// the value is.
	named, valid bool
}

// traitOf looks at a field.
func traitOf(name, value []byte) trait {
	if checkField(name, value) != "" {
		return trait{} // to be looked at, and refused, each time
	}
	return trait{exchange.Identify(name), true, true}
}

func (e *entry) size() uint32 { return uint32(e.name) + uint32(e.value) + entryOverhead }

// table is a dynamic table. Its entries are numbered from 0 in the order in which
// they came, for ever. Source: RFC 7541 section 2.3.2.
type table struct {
	max   uint32
	size  uint32
	added uint32 // number of the next entry
	live  uint32 // how many of the last ones are still there
	ents  [maxEntries]entry
	mem   []byte
}

func (t *table) entry(number uint32) *entry { return &t.ents[number%maxEntries] }

func (t *table) oldest() uint32 { return t.added - t.live }

func (t *table) nameOf(e *entry) []byte { return t.mem[e.at : e.at+uint32(e.name)] }

func (t *table) valueOf(e *entry) []byte {
	from := e.at + uint32(e.name)
	return t.mem[from : from+uint32(e.value)]
}

// evict removes the oldest entry.
func (t *table) evict() {
	t.size -= t.entry(t.oldest()).size()
	t.live--
}

// add adds an entry, for which there is room: the caller evicted what had to go.
func (t *table) add(name, value []byte, is trait) {
	n := len(name) + len(value)
	if len(t.mem)+n > cap(t.mem) {
		t.compact(n)
	}
	e := t.entry(t.added)
	*e = entry{at: uint32(len(t.mem)), name: uint16(len(name)), value: uint16(len(value)), trait: is}
	t.mem = append(append(t.mem, name...), value...)
	t.size += e.size()
	t.added++
	t.live++
}

// compact moves the bytes of the live entries to the beginning of the memory, and
// gets more of it until there is twice what can be live: then each byte is moved
// about once.
func (t *table) compact(n int) {
	from := uint32(len(t.mem))
	if t.live > 0 {
		from = t.entry(t.oldest()).at
	}
	kept := t.mem[from:]
	dst := t.mem[:0]
	if size := len(kept) + n; 2*size > cap(t.mem) && cap(t.mem) < 2*maxTable {
		dst = make([]byte, 0, min(max(2*size, 1024, 2*cap(t.mem)), 2*maxTable))
	}
	t.mem = append(dst, kept...)
	for i := t.oldest(); i != t.added; i++ {
		t.entry(i).at -= from
	}
}

// field is a field of the static table.
type field struct{ name, value string }

// static is the static table; its first field has index 1. Source: RFC 7541
// appendix A.
var static = [...]field{
	{":authority", ""},
	{":method", "GET"},
	{":method", "POST"},
	{":path", "/"},
	{":path", "/index.html"},
	{":scheme", "http"},
	{":scheme", "https"},
	{":status", "200"},
	{":status", "204"},
	{":status", "206"},
	{":status", "304"},
	{":status", "400"},
	{":status", "404"},
	{":status", "500"},
	{"accept-charset", ""},
	{"accept-encoding", "gzip, deflate"},
	{"accept-language", ""},
	{"accept-ranges", ""},
	{"accept", ""},
	{"access-control-allow-origin", ""},
	{"age", ""},
	{"allow", ""},
	{"authorization", ""},
	{"cache-control", ""},
	{"content-disposition", ""},
	{"content-encoding", ""},
	{"content-language", ""},
	{"content-length", ""},
	{"content-location", ""},
	{"content-range", ""},
	{"content-type", ""},
	{"cookie", ""},
	{"date", ""},
	{"etag", ""},
	{"expect", ""},
	{"expires", ""},
	{"from", ""},
	{"host", ""},
	{"if-match", ""},
	{"if-modified-since", ""},
	{"if-none-match", ""},
	{"if-range", ""},
	{"if-unmodified-since", ""},
	{"last-modified", ""},
	{"link", ""},
	{"location", ""},
	{"max-forwards", ""},
	{"proxy-authenticate", ""},
	{"proxy-authorization", ""},
	{"range", ""},
	{"referer", ""},
	{"refresh", ""},
	{"retry-after", ""},
	{"server", ""},
	{"set-cookie", ""},
	{"strict-transport-security", ""},
	{"transfer-encoding", ""},
	{"user-agent", ""},
	{"vary", ""},
	{"via", ""},
	{"www-authenticate", ""},
}

// staticTraits are those of the static table's fields.
var staticTraits = func() (t [len(static)]trait) {
	for i, f := range static {
		t[i] = traitOf([]byte(f.name), []byte(f.value))
	}
	return t
}()

// Indexes of the static table that are written without looking.
const (
	staticAuthority = 1
	staticGET       = 2
	staticPOST      = 3
	staticPath      = 4
	staticHTTP      = 6
	staticHTTPS     = 7
	staticStatus    = 8
)

// staticNames is the first index of each name.
var staticNames = func() map[string]uint8 {
	m := make(map[string]uint8, len(static))
	for i, f := range static {
		if _, ok := m[f.name]; !ok {
			m[f.name] = uint8(i + 1)
		}
	}
	return m
}()

// appendInt appends an integer with a prefix of so many bits; first holds the bits
// before it. Source: RFC 7541 section 5.1.
func appendInt(b []byte, first byte, bits uint, n uint32) []byte {
	limit := uint32(1)<<bits - 1
	if n < limit {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(limit))
	for n -= limit; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// readInt reads such an integer. Those above 28 bits are refused: nothing we take
// is that long.
func readInt(p []byte, bits uint) (n uint32, rest []byte, ok bool) {
	if len(p) == 0 {
		return 0, nil, false
	}
	limit := uint32(1)<<bits - 1
	n = uint32(p[0]) & limit
	p = p[1:]
	if n < limit {
		return n, p, true
	}
	for shift := uint(0); shift <= 21; shift += 7 {
		if len(p) == 0 {
			return 0, nil, false
		}
		c := p[0]
		p = p[1:]
		n += uint32(c&0x7f) << shift
		if c < 0x80 {
			return n, p, true
		}
	}
	return 0, nil, false
}
