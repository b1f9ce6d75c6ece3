//go:build !linux

package mtls

import (
	"errors"
	"net"
)

// Bulk is for Linux only.
func (t *Transport) Bulk(*net.TCPConn) error { return errors.ErrUnsupported }
