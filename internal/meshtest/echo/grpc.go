package echo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service has one method for each form of a call. Messages are texts; the first
// of an answer is a Reply.
const service = "/heddle.test.Echo/"

// streamMessages is how many messages the streaming forms send.
const streamMessages = 5

var methods = map[string]*grpc.StreamDesc{
	"upload":   {StreamName: "upload", ClientStreams: true},
	"download": {StreamName: "download", ServerStreams: true},
	"chat":     {StreamName: "chat", ClientStreams: true, ServerStreams: true},
}

// serveGRPC answers calls of every form. Metadata changes the answer: x-echo-code
// (the status), x-echo-delay, x-echo-size (bytes of each message of the answer).
func (s Server) serveGRPC(ctx context.Context, l net.Listener) error {
	desc := &grpc.ServiceDesc{
		ServiceName: strings.Trim(service, "/"),
		HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "unary", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := decode(in); err != nil {
				return nil, err
			}
			out, err := s.call(ctx, "unary", int64(len(in.Value)))
			if err != nil {
				return nil, err
			}
			return out, nil
		}}},
	}
	for name, d := range methods {
		own := *d
		own.Handler = func(_ any, stream grpc.ServerStream) error { return s.stream(name, stream) }
		desc.Streams = append(desc.Streams, own)
	}
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20))
	srv.RegisterService(desc, nil)
	stop := context.AfterFunc(ctx, srv.Stop)
	defer stop()
	if err := srv.Serve(l); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// call does what the metadata asks for, and returns an answer.
func (s Server) call(ctx context.Context, method string, n int64) (*wrapperspb.StringValue, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	get := func(name string) string { return strings.Join(md.Get(name), ",") }
	grpc.SetTrailer(ctx, metadata.Pairs("x-echo-trailer", s.Pod))
	if d, err := time.ParseDuration(get("x-echo-delay")); err == nil {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if code, err := strconv.Atoi(get("x-echo-code")); err == nil && code != 0 {
		return nil, status.Error(codes.Code(code), "as asked")
	}
	if size, err := strconv.Atoi(get("x-echo-size")); err == nil {
		return wrapperspb.String(strings.Repeat("x", size)), nil
	}
	header := map[string]string{}
	for name, values := range md {
		header[name] = strings.Join(values, ",")
	}
	b, err := json.Marshal(Reply{Pod: s.Pod, Method: method, Host: get(":authority"), Path: service + method, Proto: "gRPC", Header: header, Bytes: n})
	return wrapperspb.String(string(b)), err
}

func (s Server) stream(method string, stream grpc.ServerStream) error {
	desc := methods[method]
	in, n := new(wrapperspb.StringValue), int64(0)
	answer := func() error {
		out, err := s.call(stream.Context(), method, n)
		if err != nil {
			return err
		}
		return stream.SendMsg(out)
	}
	for {
		err := stream.RecvMsg(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if n += int64(len(in.Value)); desc.ClientStreams && desc.ServerStreams {
			if err := answer(); err != nil {
				return err
			}
		}
	}
	switch {
	case !desc.ServerStreams:
		return answer()
	case !desc.ClientStreams:
		for range streamMessages {
			if err := answer(); err != nil {
				return err
			}
		}
	}
	return nil
}

// dialGRPC returns a connection for calls to the URL's host.
func (c Client) dialGRPC(u *url.URL) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+u.Host, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)), grpc.WithDisableRetry(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.Dial(ctx, "tcp", addr) }))
}

// oneCall makes the call that the URL's path names.
func oneCall(ctx context.Context, conn *grpc.ClientConn, g Get) (r Result) {
	u, err := url.Parse(g.URL)
	if err != nil {
		return Result{Error: err.Error()}
	}
	method := cmp.Or(strings.Trim(u.Path, "/"), "unary")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.Timeout)
	defer cancel()
	authority := u.Host
	for _, h := range g.Header {
		name, value, _ := strings.Cut(h, ":")
		if value = strings.TrimSpace(value); strings.EqualFold(name, "host") {
			authority = value
			continue
		}
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	var header, trailer metadata.MD
	opts := []grpc.CallOption{grpc.CallAuthority(authority), grpc.Header(&header), grpc.Trailer(&trailer)}
	take := func(out *wrapperspb.StringValue) {
		r.Bytes += int64(len(out.Value))
		r.Messages++
		if r.Reply == nil && strings.HasPrefix(out.Value, "{") {
			r.Reply = new(Reply)
			err = json.Unmarshal([]byte(out.Value), r.Reply)
		}
	}
	in := wrapperspb.String(strings.Repeat("x", int(g.Size)))
	if desc := methods[method]; desc == nil {
		out := new(wrapperspb.StringValue)
		if err = conn.Invoke(ctx, service+method, in, out, opts...); err == nil {
			take(out)
		}
	} else {
		err = converse(ctx, conn, desc, in, take, opts)
	}
	r.Code = status.Code(err).String()
	if err != nil {
		r.Error = status.Convert(err).Message()
	}
	r.Header = map[string]string{}
	for _, md := range []metadata.MD{header, trailer} {
		for name, values := range md {
			r.Header[name] = strings.Join(values, ",")
		}
	}
	return r
}

// converse has a stream's conversation: in chat, each message is answered before the
// next is sent.
func converse(ctx context.Context, conn *grpc.ClientConn, desc *grpc.StreamDesc, in *wrapperspb.StringValue, take func(*wrapperspb.StringValue), opts []grpc.CallOption) error {
	stream, err := conn.NewStream(ctx, desc, service+desc.StreamName, opts...)
	if err != nil {
		return err
	}
	receive := func() error {
		out := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(out); err != nil {
			return err
		}
		take(out)
		return nil
	}
	n := 1
	if desc.ClientStreams {
		n = streamMessages
	}
	for range n {
		if err := stream.SendMsg(in); err != nil {
			break // receiving tells why
		}
		if desc.ClientStreams && desc.ServerStreams {
			if err := receive(); err != nil {
				return err
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if err := receive(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
