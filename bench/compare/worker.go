package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/proxy/exchange"
	"github.com/heddle-mesh/heddle/internal/proxy/http2"
)

// worker returns what this program does as a process of its own.
func worker(name string) func(args []string) error {
	switch name {
	case "worker-backend":
		return backend
	case "worker-open":
		return open
	case "worker-bulk":
		return receive
	case "worker-hold":
		return hold
	}
	return nil
}

// request is what a client of usual verbosity sends, about 450 bytes.
const request = "GET /api/v1/items/12345 HTTP/1.1\r\n" +
	"Host: backend.bench\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n" +
	"Accept: application/json, text/plain, */*\r\n" +
	"Accept-Language: en-GB,en;q=0.9\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\n" +
	"Cookie: session=7f3d8e0a4b5c46d1b0f1e2d3c4b5a697\r\n" +
	"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
	"Cache-Control: no-cache\r\n\r\n"

// bodySize is that of each response.
const bodySize = 1024

// backend answers requests on one port and pours bytes on another, until it is
// killed. It says on which ones.
func backend([]string) error {
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	source, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	response := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nDate: Fri, 01 Jan 2027 00:00:00 GMT\r\nServer: bench\r\n\r\n%s",
		bodySize, strings.Repeat("x", bodySize))
	calls, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(web.Addr(), source.Addr(), calls.Addr())
	items := newItems()
	go accept(calls, func(c net.Conn) {
		_ = http2.NewServer(http2.Config{Conn: c, Handler: items}).Run(context.Background()) // clients come and go
	})
	go accept(source, func(c net.Conn) {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			return
		}
		for block := make([]byte, 256<<10); ; {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	return accept(web, func(c net.Conn) {
		buf := make([]byte, 8<<10)
		n := 0
		for {
			m, err := c.Read(buf[n:])
			if err != nil {
				return
			}
			// No request has a body, and none is sent before the last was answered.
			if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
				if _, err := c.Write(response); err != nil {
					return
				}
				n = 0
			}
		}
	})
}

// message is one of gRPC, as large as a response.
func message() []byte {
	b := make([]byte, 5+bodySize)
	binary.BigEndian.PutUint32(b[1:], bodySize)
	return b
}

// items answers requests of HTTP/2, those with a body as calls of gRPC.
type items struct {
	web, call, trailers *http2.Head
	body, message       []byte
}

func newItems() *items {
	head := func(status int, list ...string) *http2.Head {
		h := new(exchange.Header)
		for i := 0; i < len(list); i += 2 {
			h.AddString(exchange.Identify([]byte(list[i])), list[i], list[i+1])
		}
		return &http2.Head{Status: status, Header: h}
	}
	return &items{
		web:      head(200, "content-type", "application/json", "content-length", strconv.Itoa(bodySize), "date", "Fri, 01 Jan 2027 00:00:00 GMT", "server", "bench"),
		call:     head(200, "content-type", "application/grpc"),
		trailers: head(0, "grpc-status", "0", "grpc-message", ""),
		body:     bytes.Repeat([]byte("x"), bodySize),
		message:  message(),
	}
}

// OnHeaders implements http2.StreamHandler.
func (k *items) OnHeaders(b *http2.Batch, s *http2.Stream, _ *http2.Head, end bool) {
	if end {
		_ = s.SendHead(b, k.web, false) // a client that left does not matter
		_, _ = s.SendData(b, k.body, true)
		s.Release(b)
	}
}

// OnData implements http2.StreamHandler.
func (k *items) OnData(b *http2.Batch, s *http2.Stream, p []byte, end bool) {
	s.Consume(b, len(p))
	if end {
		_ = s.SendHead(b, k.call, false)
		_, _ = s.SendData(b, k.message, false)
		_ = s.SendHead(b, k.trailers, true)
		s.Release(b)
	}
}

// OnTrailers implements http2.StreamHandler.
func (k *items) OnTrailers(*http2.Batch, *http2.Stream, *http2.Head) {}

// OnReset implements http2.StreamHandler.
func (k *items) OnReset(b *http2.Batch, s *http2.Stream, _ http2.Reset) { s.Release(b) }

// OnWindow implements http2.StreamHandler.
func (k *items) OnWindow(*http2.Batch, *http2.Stream, int) {}

func accept(l net.Listener, serve func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// answer reads one response and fails unless it is the backend's.
func answer(r *bufio.Reader) error {
	length := -1
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case first:
			if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
				return fmt.Errorf("answer %q", line)
			}
		case len(line) == 0:
			if length != bodySize {
				return fmt.Errorf("answer with %d bytes", length)
			}
			_, err := r.Discard(length)
			return err
		default:
			const name = "content-length:"
			if len(line) > len(name) && strings.EqualFold(string(line[:len(name)]), name) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(name):]))); err != nil {
					return err
				}
			}
		}
	}
}

// sample is what a generator found.
type sample struct {
	Units    float64 // requests or MB
	Seconds  float64
	P50, P99 float64 // µs; 0 where there are no requests
}

func (s sample) print() error { return json.NewEncoder(os.Stdout).Encode(s) }

// open sends requests at a constant rate, whether or not the last were answered.
// The time of a request counts from when it should have been sent, so that a
// pause shows in all the requests that it held up.
func open(args []string) error {
	fs := flag.NewFlagSet("worker-open", flag.ExitOnError)
	addr := fs.String("addr", "", "")
	n := fs.Int("connections", 16, "")
	rate := fs.Int("rate", 1000, "")
	d := fs.Duration("duration", time.Second, "")
	_ = fs.Parse(args) // it exits

	type connection struct {
		net.Conn
		due   chan time.Time // holds one: when the request on its way was due
		times []time.Duration
		err   error
	}
	idle := make(chan *connection, *n)
	var all []*connection
	var wg sync.WaitGroup
	for range *n {
		nc, err := net.Dial("tcp", *addr)
		if err != nil {
			return err
		}
		c := &connection{Conn: nc, due: make(chan time.Time, 1)}
		all = append(all, c)
		wg.Go(func() {
			r := bufio.NewReader(c)
			for due := range c.due {
				if c.err == nil {
					c.err = answer(r)
				}
				c.times = append(c.times, time.Since(due))
				idle <- c
			}
		})
		idle <- c
	}
	// A timer of the runtime is as coarse as epoll's milliseconds. The thread that
	// sleeps in its place must not keep the others from running.
	runtime.GOMAXPROCS(4)
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	begin := time.Now()
	total := int(d.Seconds() * float64(*rate))
	for i := range total {
		due := begin.Add(time.Duration(i) * time.Second / time.Duration(*rate))
		if wait := time.Until(due); wait > 0 {
			t := unix.NsecToTimespec(int64(wait))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &t, nil) // a signal makes one request early
		}
		c := <-idle
		c.due <- due
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
	}
	var times []time.Duration
	for range all {
		c := <-idle
		close(c.due)
		if c.err != nil {
			return c.err
		}
	}
	wg.Wait()
	seconds := time.Since(begin).Seconds()
	for _, c := range all {
		times = append(times, c.times...)
	}
	slices.Sort(times)
	at := func(share float64) float64 {
		return float64(times[int(share*float64(len(times)-1))]) / float64(time.Microsecond)
	}
	return sample{Units: float64(total), Seconds: seconds, P50: at(0.5), P99: at(0.99)}.print()
}

// receive reads what the backend pours, over several connections.
func receive(args []string) error {
	fs := flag.NewFlagSet("worker-bulk", flag.ExitOnError)
	addr := fs.String("addr", "", "")
	n := fs.Int("connections", 4, "")
	d := fs.Duration("duration", time.Second, "")
	_ = fs.Parse(args) // it exits

	var sum atomic.Int64
	begin := time.Now()
	end := begin.Add(*d)
	errs := make(chan error, *n)
	for range *n {
		go func() { errs <- drain(*addr, end, &sum) }()
	}
	for range *n {
		if err := <-errs; err != nil {
			return err
		}
	}
	return sample{Units: float64(sum.Load()) / 1e6, Seconds: time.Since(begin).Seconds()}.print()
}

func drain(addr string, end time.Time, sum *atomic.Int64) error {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(end); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'g'}); err != nil {
		return err
	}
	for buf := make([]byte, 256<<10); ; {
		n, err := c.Read(buf)
		sum.Add(int64(n))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
	}
}

// hold opens connections and leaves them open after one request each. Each line
// it reads is how many there shall be; it answers when they are.
func hold(args []string) error {
	fs := flag.NewFlagSet("worker-hold", flag.ExitOnError)
	addr := fs.String("addr", "", "")
	dir := fs.String("certs", "", "directory with the client's certificate; empty for plain text")
	_ = fs.Parse(args) // it exits

	var secure *tls.Config
	if *dir != "" {
		var err error
		if secure, err = clientTLS(*dir); err != nil {
			return err
		}
	}
	var held []net.Conn
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		want, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		for len(held) < want {
			c, err := ask(*addr, secure)
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(held)+1, err)
			}
			held = append(held, c)
		}
		fmt.Println("ok")
	}
	runtime.KeepAlive(held)
	return nil
}

// ask makes one request on a new connection and leaves that open.
func ask(addr string, secure *tls.Config) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	if secure != nil {
		c = tls.Client(c, secure)
	}
	if _, err := io.WriteString(c, request); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if err := answer(bufio.NewReaderSize(c, 2<<10)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// askHTTP2 makes a request of HTTP/2.
func askHTTP2(addr string) error {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: time.Second}
	resp, err := c.Get("http://" + addr + "/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || len(b) != bodySize {
		return fmt.Errorf("answer %d with %d bytes: %w", resp.StatusCode, len(b), err)
	}
	return nil
}
