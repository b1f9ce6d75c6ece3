package rbac

import "bytes"

// trie holds texts by their beginnings, or, read backwards, by their ends. A nil
// trie is empty. Labels are compressed, so that a walk has one step for each place
// at which texts part.
type trie struct {
	label string
	ids   []int32 // of the text that ends here; nil if none does
	next  []byte  // first bytes of the children's labels
	child []*trie
}

// add puts id under a text and returns the root.
func (t *trie) add(text string, backwards bool, id int32) *trie {
	if backwards {
		text = reversed(text)
	}
	if t == nil {
		t = &trie{}
	}
	t.insert(text, id)
	return t
}

func (t *trie) insert(text string, id int32) {
	n := 0
	for n < len(text) && n < len(t.label) && text[n] == t.label[n] {
		n++
	}
	if n < len(t.label) {
		rest := *t
		rest.label = t.label[n:]
		*t = trie{label: t.label[:n], next: []byte{rest.label[0]}, child: []*trie{&rest}}
	}
	if text = text[n:]; text == "" {
		if len(t.ids) == 0 || t.ids[len(t.ids)-1] != id {
			t.ids = append(t.ids, id)
		}
		return
	}
	if i := bytes.IndexByte(t.next, text[0]); i >= 0 {
		t.child[i].insert(text, id)
		return
	}
	t.next = append(t.next, text[0])
	t.child = append(t.child, &trie{label: text, ids: []int32{id}})
}

func reversed(s string) string {
	b := []byte(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}

// walk is a position on the way along a text.
type walk struct {
	at        *trie
	rest      string
	backwards bool
}

func (t *trie) walk(text string, backwards bool) walk { return walk{t, text, backwards} }

// step returns the ids of the next text that the walked one begins, or ends, with,
// and nil at the end.
func (w *walk) step() []int32 {
	for w.at != nil {
		t := w.at
		n := len(t.label)
		if n > len(w.rest) || !w.fits(t.label) {
			w.at = nil
			return nil
		}
		if w.backwards {
			w.rest = w.rest[:len(w.rest)-n]
		} else {
			w.rest = w.rest[n:]
		}
		w.at = nil
		if len(w.rest) > 0 {
			first := w.rest[0]
			if w.backwards {
				first = w.rest[len(w.rest)-1]
			}
			if i := bytes.IndexByte(t.next, first); i >= 0 {
				w.at = t.child[i]
			}
		}
		if t.ids != nil {
			return t.ids
		}
	}
	return nil
}

func (w *walk) fits(label string) bool {
	if !w.backwards {
		return w.rest[:len(label)] == label
	}
	last := len(w.rest) - 1
	for i := range len(label) {
		if w.rest[last-i] != label[i] {
			return false
		}
	}
	return true
}

// any reports whether there is a text that the walked one begins, or ends, with.
func (t *trie) any(text string, backwards bool) bool {
	w := t.walk(text, backwards)
	return w.step() != nil
}
