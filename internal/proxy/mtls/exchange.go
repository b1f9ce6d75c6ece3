package mtls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// PeerExchange is the ALPN protocol whose connections begin with the exchange.
const PeerExchange = "istio-peer-exchange"

const (
	// exchangeMagic begins a frame. Source: istio/proxy,
	// MetadataExchangeInitialHeader.
	exchangeMagic = 0x3D230467
	// frameHeader is the magic and the length, both 32 bits in network order.
	frameHeader = 8
	// MaxFrame bounds a frame's body. A sidecar's metadata takes one to two
	// kilobytes; a pod's labels can make it some tens.
	MaxFrame = 64 << 10
)

var (
	// ErrNoExchange is returned when the peer's first bytes are not a frame's.
	ErrNoExchange = errors.New("mtls: peer does not begin with metadata exchange")
	// ErrFrameTooLong is returned for a frame beyond MaxFrame.
	ErrFrameTooLong = fmt.Errorf("mtls: metadata exchange frame of more than %d bytes", MaxFrame)
)

// Exchange sends own, an encoded Metadata, to the peer and returns what the peer
// sends, undecoded. It gives up at the deadline and leaves conn without one.
//
// Both sides send at once and then read. Istio's proxy sends with its first
// bytes or, when it hears first, in answer; a server that waited for the
// client's frame would wait in vain if the protocol above lets the server speak
// first. For the same reason the client may not hold up data for the peer's
// frame if it need not: it can use WriteFrame, forward, and ReadFrame before the
// first byte of the other direction. client says which side this is, for
// messages.
func Exchange(conn net.Conn, own []byte, client bool, deadline time.Time) (peer []byte, err error) {
	side := "client"
	if client {
		side = "server"
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := WriteFrame(conn, own); err != nil {
		return nil, fmt.Errorf("metadata to %s: %w", side, err)
	}
	peer, err = ReadFrame(conn)
	if err != nil {
		return nil, fmt.Errorf("metadata from %s: %w", side, err)
	}
	return peer, conn.SetDeadline(time.Time{})
}

// AppendFrame appends body with its header.
func AppendFrame(b, body []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, exchangeMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// WriteFrame sends body in one write.
func WriteFrame(w io.Writer, body []byte) error {
	if len(body) > MaxFrame {
		return ErrFrameTooLong
	}
	_, err := w.Write(AppendFrame(make([]byte, 0, frameHeader+len(body)), body))
	return err
}

// ReadFrame reads one frame and not a byte beyond it, and returns its body. It
// sets no deadline: a peer may say nothing for ever.
func ReadFrame(r io.Reader) ([]byte, error) {
	var header [frameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(header[:]) != exchangeMagic {
		return nil, ErrNoExchange
	}
	n := binary.BigEndian.Uint32(header[4:])
	if n > MaxFrame {
		return nil, ErrFrameTooLong
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body, nil
}
