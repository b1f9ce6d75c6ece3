package http2

import "time"

// bucket counts events against a Rate.
type bucket struct {
	rate Rate
	left int
	last time.Time
}

func newBucket(r Rate) bucket { return bucket{rate: r, left: r.Burst} }

// take counts an event and reports whether it was still within the rate.
func (b *bucket) take(now time.Time) bool {
	if b.last.IsZero() {
		b.last = now
	}
	if d := now.Sub(b.last); d > 0 && b.rate.PerSecond > 0 {
		// Long pauses fill the bucket; the product can not overflow.
		d = min(d, time.Hour)
		if n := int(d * time.Duration(b.rate.PerSecond) / time.Second); n > 0 {
			b.left = min(b.left+n, b.rate.Burst)
			b.last = b.last.Add(time.Duration(n) * time.Second / time.Duration(b.rate.PerSecond))
			if d == time.Hour {
				b.last = now
			}
		}
	}
	b.left--
	return b.left >= 0
}

// give makes room for n events.
func (b *bucket) give(n int) { b.left = min(b.left+n, b.rate.Burst) }
