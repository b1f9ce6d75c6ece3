package router

// Rest lets go of the timer, if no request is being guarded. The call can be dropped
// then: a connection that is used again gets a new one.
func (c *call) Rest() bool {
	g := &c.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active {
		return false
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	return true
}
