package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
)

func newDecoder(maxList, maxFields int) *decoder {
	d := new(decoder)
	d.init(maxList, maxFields)
	return d
}

func newEncoder() *encoder {
	e := new(encoder)
	e.init()
	return e
}

// fieldsOf returns a decoded block's fields, pseudo-headers too.
func fieldsOf(h *Head) []hpack.HeaderField {
	var list []hpack.HeaderField
	for _, s := range h.spans {
		list = append(list, hpack.HeaderField{
			Name:      string(h.text.b[s.name:s.mid]),
			Value:     string(h.text.b[s.mid+2 : s.end]),
			Sensitive: s.never,
		})
	}
	return list
}

func sameFields(a, b []hpack.HeaderField) bool {
	return fmt.Sprint(a) == fmt.Sprint(b)
}

// randomFields makes requests as they repeat: a few values many times, others once.
func randomFields(r *rand.Rand) []hpack.HeaderField {
	list := []hpack.HeaderField{
		{Name: ":method", Value: []string{"GET", "POST", "PUT"}[r.IntN(3)]},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: fmt.Sprintf("/%d", r.IntN(4))},
		{Name: ":authority", Value: "reviews:9080"},
	}
	for range r.IntN(12) {
		name := fmt.Sprintf("x-%c", 'a'+r.IntN(20))
		value := strings.Repeat("v", r.IntN(40)) + fmt.Sprint(r.IntN(3))
		if r.IntN(4) == 0 {
			value = fmt.Sprint(r.Uint64())
		}
		if r.IntN(30) == 0 {
			value = strings.Repeat("long", 1+r.IntN(1500))
		}
		list = append(list, hpack.HeaderField{Name: name, Value: value, Sensitive: r.IntN(10) == 0})
	}
	return list
}

func TestBlocksOfAnotherEncoderAreRead(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	d := newDecoder(1<<20, maxFieldsEver)
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	h := new(Head)
	for i := range 3000 {
		if r.IntN(20) == 0 {
			enc.SetMaxDynamicTableSize(uint32(r.IntN(maxTable + 1)))
		}
		want := randomFields(r)
		buf.Reset()
		for _, f := range want {
			enc.WriteField(f)
		}
		if !d.decode(h, buf.Bytes()) {
			t.Fatalf("block %d: not decoded", i)
		}
		if got := fieldsOf(h); !sameFields(got, want) {
			t.Fatalf("block %d:\n got %v\nwant %v", i, got, want)
		}
	}
}

// headOf makes a Head to send.
func headOf(list []hpack.HeaderField) *Head {
	h := &Head{Header: new(exchange.Header)}
	n := 0
	for _, f := range list {
		switch f.Name {
		case ":method":
			h.Method = []byte(f.Value)
		case ":scheme":
			h.Scheme = []byte(f.Value)
		case ":path":
			h.Path = []byte(f.Value)
		case ":authority":
			h.Authority = []byte(f.Value)
		default:
			h.Header.Add(exchange.Identify([]byte(f.Name)), f.Name, []byte(f.Value))
			if f.Sensitive {
				h.never[n/64] |= 1 << (n % 64)
			}
			n++
		}
	}
	return h
}

func TestAnotherDecoderReadsOurBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	e := newEncoder()
	d := hpack.NewDecoder(maxTable, nil)
	d.SetMaxStringLength(1 << 20)
	for i := range 3000 {
		if r.IntN(20) == 0 {
			for range r.IntN(3) {
				e.setMax(uint32(r.IntN(2 * maxTable)))
			}
			d.SetAllowedMaxDynamicTableSize(maxTable)
		}
		want := randomFields(r)
		block := e.head(nil, headOf(want))
		got, err := d.DecodeFull(block)
		if err != nil {
			t.Fatalf("block %d: %v", i, err)
		}
		if !sameFields(got, want) {
			t.Fatalf("block %d:\n got %v\nwant %v", i, got, want)
		}
		if e.tab.size > e.tab.max || e.tab.max > maxTable {
			t.Fatalf("block %d: the table holds %d of %d", i, e.tab.size, e.tab.max)
		}
	}
}

// The encoder remembers few fields, by a hash with a seed of its own: now and then the
// request's number takes the place of a field that would have been indexed. What is
// expected of sizes is therefore expected of most encoders; no secret is indexed by any.
func TestWhatRepeatsIsIndexedAndSecretsAreNot(t *testing.T) {
	const encoders = 64
	small := 0
	for range encoders {
		e := newEncoder()
		list := []hpack.HeaderField{
			{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: "/"},
			{Name: ":authority", Value: "reviews:9080"},
			{Name: "user-agent", Value: "a browser of some length"},
			{Name: "cookie", Value: "session=0123456789"},
			{Name: "authorization", Value: "Bearer 0123456789"},
		}
		var sizes []int
		for i := range 4 {
			h := headOf(append(list, hpack.HeaderField{Name: "x-request-id", Value: fmt.Sprintf("%032d", i)}))
			block := e.head(nil, h)
			sizes = append(sizes, len(block))
			if !bytes.Contains(block, []byte("Bearer 0123456789")) || !bytes.Contains(block, []byte("session=0123456789")) {
				t.Errorf("block %d holds a secret by its index", i)
			}
		}
		if e.tab.live > 2 {
			t.Errorf("%d fields are in the table, want no more than the authority and the user agent", e.tab.live)
		}
		if sizes[2] < sizes[1] && sizes[3] == sizes[2] && e.tab.live == 2 {
			small++
		}
	}
	if small < encoders/2 {
		t.Errorf("%d of %d encoders index what repeats", small, encoders)
	}
}

func TestBlocksThatMeanNothing(t *testing.T) {
	literal := func(kind byte, name, value string) []byte {
		return appendString(appendString([]byte{kind}, []byte(name)), []byte(value))
	}
	for _, c := range []struct {
		name  string
		block []byte
	}{
		{"index 0", []byte{0x80}},
		{"index beyond the tables", []byte{0xff, 0x00}},
		{"name beyond the tables", []byte{0x7f, 0x00, 0x00}},
		{"integer without an end", []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"integer cut off", []byte{0xff}},
		{"string cut off", []byte{0x00, 0x05, 'a'}},
		{"no value", []byte{0x00, 0x01, 'a'}},
		{"string longer than anything", []byte{0x00, 0x7f, 0xff, 0xff, 0x7f}},
		{"Huffman padding too long", []byte{0x00, 0x82, 0xff, 0xff, 0x00}},
		{"Huffman end of string", []byte{0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00}},
		{"table size behind a field", append(literal(0, "a", "b"), 0x20)},
		{"table size beyond the limit", []byte{0x3f, 0xe2, 0x1f}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if newDecoder(1<<16, 100).decode(new(Head), c.block) {
				t.Error("it was understood")
			}
		})
	}
}

// A list beyond the limit is not kept, but followed: the next block has the tables
// that its sender has.
func TestTableFollowsListsThatAreTooLong(t *testing.T) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	d := newDecoder(1000, 100)
	h := new(Head)
	for i := range 40 {
		enc.WriteField(hpack.HeaderField{Name: fmt.Sprintf("x-%d", i), Value: strings.Repeat("v", 30)})
	}
	if !d.decode(h, buf.Bytes()) || !h.over {
		t.Fatalf("decoded with over=%v", h.over)
	}
	if n := len(h.text.b); n > 1000 {
		t.Errorf("%d bytes were kept", n)
	}
	buf.Reset()
	want := []hpack.HeaderField{{Name: "x-39", Value: strings.Repeat("v", 30)}, {Name: "x-20", Value: strings.Repeat("v", 30)}}
	for _, f := range want {
		enc.WriteField(f)
	}
	if buf.Len() > 4 {
		t.Fatalf("%d bytes: the other side has forgotten", buf.Len())
	}
	if !d.decode(h, buf.Bytes()) || !sameFields(fieldsOf(h), want) {
		t.Errorf("got %v", fieldsOf(h))
	}
}

// The bytes of a list are counted as they are decoded: a block of one-byte
// references to a long entry must not become many times itself.
func TestReferencesToLongEntriesAreNotExpanded(t *testing.T) {
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	crumb := hpack.HeaderField{Name: "cookie", Value: strings.Repeat("c", 4000)}
	enc.WriteField(crumb)
	for range 50000 {
		enc.WriteField(crumb)
	}
	d := newDecoder(defaultMaxHeaderBytes, maxFieldsEver)
	h := new(Head)
	if !d.decode(h, buf.Bytes()) || !h.over {
		t.Fatal("not over the limit")
	}
	if n := cap(h.text.b); n > 2*defaultMaxHeaderBytes {
		t.Errorf("%d bytes of memory for a limit of %d", n, defaultMaxHeaderBytes)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff}, []byte{0x82, 0xbe})
	f.Add([]byte{0x40, 0x01, 'a', 0x01, 'b', 0xbe}, []byte{0x20, 0xbe})
	f.Add([]byte{0x3f, 0xe1, 0x1f, 0x10, 0x01, 'a', 0x00}, []byte{0x7e, 0x01, 'c'})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		ours := newDecoder(1<<30, 1<<30)
		theirs := hpack.NewDecoder(maxTable, nil)
		for _, block := range [][]byte{one, two} {
			h := new(Head)
			ok := ours.decode(h, block)
			want, err := theirs.DecodeFull(block)
			if ok && err != nil {
				// Theirs wants a table size to come first only while the table is not
				// empty, and takes longer integers; in nothing else are we more lenient.
				t.Fatalf("%x: understood as %v; the other says %v", block, fieldsOf(h), err)
			}
			if !ok {
				return
			}
			if !sameFields(fieldsOf(h), want) {
				t.Fatalf("%x: %v, the other says %v", block, fieldsOf(h), want)
			}
			h.finish(requestHead)
			// What was read can be said again.
			again, err := hpack.NewDecoder(maxTable, nil).DecodeFull(newEncoder().head(nil, h))
			if err != nil {
				t.Fatalf("%x: our block is wrong: %v", block, err)
			}
			if h.bad == "" && len(again) > len(want)+1 {
				t.Fatalf("%x: %v became %v", block, want, again)
			}
		}
	})
}
