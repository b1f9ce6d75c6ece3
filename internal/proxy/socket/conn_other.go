//go:build !linux

package socket

import "net"

// Conn does not exist here: connections are used as they are.
type Conn struct{ net.Conn }

// Wrap returns c.
func Wrap(c net.Conn) net.Conn { return c }

// Await is never called: there is no Conn.
func (c *Conn) Await(func() bool) error { panic("socket: no Conn on this system") }

// Wait is never called.
func (c *Conn) Wait() error { panic("socket: no Conn on this system") }

// Quiet reports nothing.
func (c *Conn) Quiet() bool { return true }

// Plain returns the connection below.
func (c *Conn) Plain() net.Conn { return c.Conn }

// HungUp reports nothing.
func (c *Conn) HungUp() bool { return false }
