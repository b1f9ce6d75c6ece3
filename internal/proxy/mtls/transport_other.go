//go:build !linux

package mtls

import (
	"errors"
	"net"
)

// Read implements net.Conn.
func (t *Transport) Read(b []byte) (int, error) { return t.readBelow(b) }

// Write implements net.Conn.
func (t *Transport) Write(b []byte) (int, error) { return t.writeBelow(b) }

// Bulk is for Linux only.
func (t *Transport) Bulk(*net.TCPConn) error { return errors.ErrUnsupported }
