//go:build !linux

package http2

import "net"

// sock reads and writes a connection. Here every write is left to a goroutine.
type sock struct{ conn net.Conn }

func (s *sock) init(c net.Conn) { s.conn = c }

func (s *sock) read(in *input) (int, error) { return s.conn.Read(in.room()) }

func (*sock) write([]byte) (int, error) { return 0, nil }
