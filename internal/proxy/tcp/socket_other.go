//go:build !linux

package tcp

import (
	"errors"
	"net"
)

var errNoPipe = errors.New("no pipe")

type reader struct{}

func newReader(*net.TCPConn) *reader { return nil }

func (*reader) read(*source) ([]byte, error) { return nil, errors.ErrUnsupported }

func (r *relay) splice(_, _ *net.TCPConn, _ func(int64)) error { return errNoPipe }

func broken(*net.TCPConn) error { return nil }
