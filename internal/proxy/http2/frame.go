package http2

import "encoding/binary"

// preface is what a client sends first. Source: RFC 9113 section 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

type frameType uint8

// Source: RFC 9113 section 6.
const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	frameHeader = 9
	// maxFrame is the largest payload in both directions: the initial value of
	// SETTINGS_MAX_FRAME_SIZE, which is also the least. Larger frames would save
	// nothing and hold up other streams.
	maxFrame = 16 << 10
	// maxFrameEver is the most that a peer may allow.
	maxFrameEver = 1<<24 - 1
	maxWindow    = 1<<31 - 1
	maxStreamID  = 1<<31 - 1
	// defaultWindow is what both sides begin with.
	defaultWindow = 65535
)

type setting uint16

// Source: RFC 9113 section 6.5.2; RFC 8441 section 3.
const (
	settingTableSize       setting = 1
	settingPush            setting = 2
	settingMaxStreams      setting = 3
	settingWindow          setting = 4
	settingMaxFrame        setting = 5
	settingMaxList         setting = 6
	settingExtendedConnect setting = 8
)

// frame is a frame as it was read. The payload is a view.
type frame struct {
	kind    frameType
	flags   uint8
	stream  uint32
	payload []byte
}

func (f *frame) has(flag uint8) bool { return f.flags&flag != 0 }

// parseFrame takes a whole frame off b. With ok false there is too little; n is
// the payload's length once it is known, and -1 before.
func parseFrame(b []byte) (f frame, n int, ok bool) {
	if len(b) < frameHeader {
		return f, -1, false
	}
	n = int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if len(b) < frameHeader+n {
		return f, n, false
	}
	f.kind, f.flags = frameType(b[3]), b[4]
	f.stream = binary.BigEndian.Uint32(b[5:]) & maxStreamID
	f.payload = b[frameHeader : frameHeader+n]
	return f, n, true
}

// unpad removes padding. Source: RFC 9113 section 6.1.
func (f *frame) unpad() bool {
	if !f.has(flagPadded) {
		return true
	}
	p := f.payload
	if len(p) == 0 || int(p[0]) >= len(p) {
		return false
	}
	f.payload = p[1 : len(p)-int(p[0])]
	return true
}

func appendFrame(b []byte, n int, kind frameType, flags uint8, stream uint32) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), flags)
	return binary.BigEndian.AppendUint32(b, stream)
}

func appendSetting(b []byte, s setting, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, uint16(s)), v)
}
