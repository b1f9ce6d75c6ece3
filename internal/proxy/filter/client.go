package filter

import (
	"net"
	"time"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http1"
)

// Interim implements exchange.Client.
func (d *downstream) Interim(x *exchange.Exchange) error {
	if x.Request.Minor == 0 {
		return nil // RFC 9110 section 15.2: HTTP/1.0 does not know them
	}
	return http1.Interim(d, x)
}

// Watch implements exchange.Client. What the client sends meanwhile stays in the
// reader, as the beginning of its next request.
func (d *downstream) Watch(gone func()) {
	if d.watching != nil {
		return
	}
	done := make(chan struct{})
	d.watching = done
	if d.busy.inside {
		stop := make(chan struct{})
		d.busy.stop = stop
		go func() {
			defer close(done)
			if d.busy.hungUp(stop) {
				d.cancel()
				gone()
			}
		}()
		return
	}
	if !d.until.IsZero() {
		d.readUntil(time.Time{})
	}
	go func() {
		defer close(done)
		if d.rd.Background() {
			d.cancel()
			gone()
		}
	}()
}

// stopWatching ends a Watch. The exchange is finished: none begins any more.
func (d *downstream) stopWatching() {
	if d.watching == nil {
		return
	}
	defer func() { d.watching = nil }()
	if d.busy.inside {
		close(d.busy.stop)
		<-d.watching
		return
	}
	select {
	case <-d.watching:
	default:
		d.c.SetReadDeadline(past)
		<-d.watching
	}
	d.readUntil(time.Time{})
}

// AbortRead implements exchange.Client.
func (d *downstream) AbortRead() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aborted = true
	d.c.SetReadDeadline(past)
}

// expectBody makes a request's first Progress set the deadline.
func (d *downstream) expectBody() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aborted, d.sends = false, time.Time{}
}

// Progress implements exchange.Client. The deadline is moved when half of the time
// is over, not for each piece.
func (d *downstream) Progress() {
	now := d.s.cfg.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.aborted && d.sends.Sub(now) < d.s.cfg.StallTimeout/2 {
		d.sends = now.Add(d.s.cfg.StallTimeout)
		d.readUntil(d.sends)
	}
}

// Write sends bytes to the client, which has to take them in time. The deadline is
// moved when half of the time is over.
func (d *downstream) Write(p []byte) (int, error) {
	now := d.now
	if d.now = noDeadline; now.IsZero() {
		now = d.s.cfg.Now()
	}
	if d.takes.Sub(now) < d.s.cfg.StallTimeout/2 {
		d.takes = now.Add(d.s.cfg.StallTimeout)
		d.c.SetWriteDeadline(d.takes)
	}
	return d.c.Write(p)
}

const (
	// lingerTime and lingerBytes bound how long a client is listened to that still
	// sends after its last response.
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// closeWriter is what TCP and TLS connections have.
type closeWriter interface{ CloseWrite() error }

// linger asks Serve to let the client read its response before the connection is closed. A
// connection that is closed with bytes unread is reset, and that may overtake the
// response. Source: RFC 9112 section 9.6.
func (d *downstream) linger(x *exchange.Exchange, complete bool) {
	if !complete || x.ClientGone || x.Tunnel != nil || !x.Uploading.Load() && d.rd.Buffered() == 0 {
		return
	}
	w, ok := d.c.(closeWriter)
	d.lingers = ok && w.CloseWrite() == nil
}

func discard(c net.Conn, now time.Time) {
	c.SetReadDeadline(now.Add(lingerTime))
	o := http1.GetOut()
	defer o.Put()
	b := o.B[:cap(o.B)]
	for n := 0; n < lingerBytes; {
		k, err := c.Read(b)
		if err != nil {
			return
		}
		n += k
	}
}
