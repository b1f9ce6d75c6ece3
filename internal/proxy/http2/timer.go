package http2

import "time"

// The things that must happen in time. There is one timer for a connection; it
// wakes the reader, which does what is due.
const (
	settingsDeadline = iota // the peer's preface, and the acknowledgement of ours
	frameDeadline           // the rest of a frame or header section
	idleDeadline            // a stream
	stallDeadline           // window for streams that wait
	drainDeadline           // the end of new streams
	pingDeadline            // a byte, before the peer is asked
	pongDeadline            // the answer
	deadlineCount
)

// setDeadline sets one of them. The timer is left running when it fires too early:
// to move it for each stream would cost more. mu is held.
func (c *Conn) setDeadline(k int, t, now time.Time) {
	c.deadlines[k] = t
	if c.closed || !c.fires.IsZero() && !c.fires.After(t) {
		return
	}
	c.fires = t
	if c.timer == nil {
		c.timer = time.AfterFunc(t.Sub(now), c.wake)
	} else {
		c.timer.Reset(t.Sub(now))
	}
}

// wake makes the reader look at the time.
func (c *Conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fires = time.Time{}
	if !c.closed {
		c.conn.SetReadDeadline(past)
	}
}

// chores does what is due, on the reader, and returns what ends the connection.
func (c *Conn) chores() error {
	b := &c.batch
	c.mu.Lock()
	switch {
	case c.err != nil:
		defer c.mu.Unlock()
		return c.err
	case c.finished:
		defer c.mu.Unlock()
		return errDone
	case c.mute:
		// The read deadline was for the last bytes; see writeFailed.
		defer c.mu.Unlock()
		if c.lost == nil {
			return errDone
		}
		return c.lost
	}
	c.conn.SetReadDeadline(time.Time{})
	now := time.Now()
	due := func(k int) bool {
		t := c.deadlines[k]
		if t.IsZero() || now.Before(t) {
			return false
		}
		c.deadlines[k] = time.Time{}
		return true
	}
	var err error
	if due(settingsDeadline) {
		err = &ConnError{Code: SettingsTimeout, Reason: "no settings in time"}
	}
	if due(frameDeadline) {
		err = &ConnError{Code: EnhanceYourCalm, Reason: "a frame took too long"}
	}
	if due(idleDeadline) && c.streams.n == 0 {
		// Who is idle for this long has no stream on its way: once is enough.
		c.draining, c.notify = true, true
		if c.client {
			c.drained = true
			c.finish()
		} else {
			c.lastGoAway()
		}
	}
	if due(drainDeadline) {
		c.lastGoAway()
	}
	if due(pongDeadline) && c.pinging {
		err = &ConnError{Code: NoError, Reason: "no answer to a ping"}
	}
	if due(pingDeadline) && c.streams.n > 0 {
		c.ping(now)
	}
	var over []*Stream
	if due(stallDeadline) {
		over = c.stalledSince(now.Add(-c.cfg.StallTimeout), now)
	}
	next := time.Time{}
	for _, t := range c.deadlines {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if !next.IsZero() && (c.fires.IsZero() || next.Before(c.fires)) {
		c.fires = next
		c.timer.Reset(next.Sub(now))
	}
	c.unlock(b)
	for _, s := range over {
		c.callReset(b, s, Reset{Code: Cancel, Reason: "the peer gave no window"})
		s.drop()
	}
	return err
}

// stalledSince resets the streams that had something to send and were not allowed
// to, and returns them, held.
func (c *Conn) stalledSince(t, now time.Time) []*Stream {
	var over []*Stream
	next := time.Time{}
	c.streams.all(func(s *Stream) {
		switch {
		case s.stalled.IsZero():
		case !s.stalled.After(t):
			s.hold()
			over = append(over, s)
			c.writeReset(s.id, Cancel)
			c.remove(s, now)
		case next.IsZero() || s.stalled.Before(next):
			next = s.stalled
		}
	})
	if !next.IsZero() {
		c.deadlines[stallDeadline] = next.Add(c.cfg.StallTimeout)
	}
	return over
}

// ping asks the peer whether it is there, if nothing came from it for long.
func (c *Conn) ping(now time.Time) {
	quiet := now.Sub(time.Unix(0, c.lastReceived.Load()))
	if quiet < c.cfg.PingInterval {
		c.deadlines[pingDeadline] = now.Add(c.cfg.PingInterval - quiet)
		return
	}
	if !c.pinging {
		c.pinging = true
		c.writePing(0, alivePing[:])
		c.deadlines[pongDeadline] = now.Add(c.cfg.PingTimeout)
	}
	c.deadlines[pingDeadline] = now.Add(c.cfg.PingInterval)
}

var alivePing = [8]byte{'a', 'l', 'i', 'v', 'e'}
