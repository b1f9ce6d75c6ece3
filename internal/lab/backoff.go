package lab

import "time"

const (
	backoffFirst = 200 * time.Millisecond
	backoffMax   = 30 * time.Second
	// healthyAfter is how long a process must have run for its earlier crashes
	// to be forgotten.
	healthyAfter = time.Minute
)

// backoff is the pause before a process is started again. Its zero value has
// seen no crash.
type backoff struct{ last time.Duration }

// next returns the pause after a process ran for so long.
func (b *backoff) next(ran time.Duration) time.Duration {
	switch {
	case b.last == 0 || ran >= healthyAfter:
		b.last = backoffFirst
	default:
		b.last = min(2*b.last, backoffMax)
	}
	return b.last
}
