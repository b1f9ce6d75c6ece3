package echo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// The two gRPC services that are spoken: the conformance suite's, and the one
// that Istio's test client calls. Their messages are a few strings, so they are
// written and read field by field.
const (
	conformanceService = "/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/"
	echoMethod         = "/proto.EchoTestService/Echo"
)

// Status codes of gRPC.
const (
	grpcOK            = 0
	grpcInvalid       = 3
	grpcUnimplemented = 12
)

// maxMessage bounds what is read of a gRPC message, as gRPC's own libraries do.
const maxMessage = 4 << 20

// serveConformance answers one call: unary, uncompressed.
func (s Server) serveConformance(w http.ResponseWriter, r *http.Request, port string) {
	w.Header().Set("content-type", "application/grpc")
	request, err := readMessage(r.Body)
	if err != nil {
		endGRPC(w, grpcInvalid, err.Error())
		return
	}
	reply := s.reply(r, int64(len(request)), port)
	switch r.URL.Path {
	case conformanceService + "Echo", conformanceService + "EchoTwo":
		writeMessage(w, assertions(r, reply, request))
	case echoMethod:
		text, err := json.Marshal(reply)
		if err != nil {
			endGRPC(w, grpcInvalid, err.Error())
			return
		}
		writeMessage(w, appendString(nil, 1, string(text)))
	default:
		endGRPC(w, grpcUnimplemented, "unknown method "+r.URL.Path)
		return
	}
	endGRPC(w, grpcOK, "")
}

func endGRPC(w http.ResponseWriter, code int, message string) {
	w.Header().Set(http.TrailerPrefix+"grpc-status", fmt.Sprint(code))
	w.Header().Set(http.TrailerPrefix+"grpc-message", message)
}

// assertions is the message EchoResponse of the conformance suite.
func assertions(r *http.Request, reply Reply, request []byte) []byte {
	b := appendString(nil, 1, r.URL.Path)
	headers := append([][2]string{{":authority", r.Host}}, pairs(r.Header)...)
	for _, h := range headers {
		b = appendMessage(b, 2, appendString(appendString(nil, 1, h[0]), 2, h[1]))
	}
	b = appendString(b, 3, r.Host)
	place := appendString(nil, 1, reply.Namespace)
	place = appendString(place, 2, reply.Ingress)
	place = appendString(place, 3, reply.Service)
	b = appendMessage(b, 4, appendString(place, 4, reply.Pod))
	if t := reply.TLS; t != nil {
		m := appendString(nil, 1, t.Version)
		m = appendString(m, 2, t.NegotiatedProtocol)
		m = appendString(m, 3, t.ServerName)
		m = appendString(m, 4, t.CipherSuite)
		for _, c := range t.PeerCertificates {
			m = appendString(m, 5, c)
		}
		b = appendMessage(b, 5, m)
	}
	return appendMessage(appendMessage(nil, 1, b), 2, request)
}

func pairs(h http.Header) [][2]string {
	var out [][2]string
	for name, values := range h {
		for _, v := range values {
			out = append(out, [2]string{strings.ToLower(name), v})
		}
	}
	return out
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return appendMessage(b, field, []byte(s))
}

func appendMessage(b []byte, field protowire.Number, m []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

// firstString returns a message's field 1.
func firstString(m []byte) (string, error) {
	for len(m) > 0 {
		number, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return "", protowire.ParseError(n)
		}
		m = m[n:]
		if number == 1 && kind == protowire.BytesType {
			s, n := protowire.ConsumeBytes(m)
			if n < 0 {
				return "", protowire.ParseError(n)
			}
			return string(s), nil
		}
		if n = protowire.ConsumeFieldValue(number, kind, m); n < 0 {
			return "", protowire.ParseError(n)
		}
		m = m[n:]
	}
	return "", nil
}

// A gRPC message has five bytes before it: whether it is compressed, and its length.

func writeMessage(w io.Writer, m []byte) {
	w.Write(frame(m)) // the caller's going away is no error of ours
}

func frame(m []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(m))), m...)
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("gRPC message: %w", err)
	}
	if head[0] != 0 {
		return nil, errors.New("gRPC message: it is compressed")
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxMessage {
		return nil, fmt.Errorf("gRPC message: it has %d bytes, more than %d", n, maxMessage)
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, fmt.Errorf("gRPC message: %w", err)
	}
	return b.Bytes(), nil
}
