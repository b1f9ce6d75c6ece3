package telemetry

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is where a log writes in tests.
type sink struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes int
	fail   error
	closed bool
	block  chan struct{}
}

func (s *sink) Write(b []byte) (int, error) {
	if s.block != nil {
		<-s.block
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.fail != nil {
		return 0, s.fail
	}
	return s.b.Write(b)
}

func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writes
}

func (s *sink) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

var start = time.Date(2026, 11, 21, 1, 2, 3, 45_678_901, time.FixedZone("", 3600))

func TestAccessLogIsIstiosDefaultFormat(t *testing.T) {
	for _, test := range []struct {
		name  string
		entry Entry
		want  string
	}{
		{"request", Entry{
			Start: start, Method: []byte("GET"), Path: []byte("/reviews/1?x=y"), Protocol: "HTTP/1.1", Code: 200,
			Details: "via_upstream", BytesReceived: 0, BytesSent: 379, Duration: 12*time.Millisecond + 900*time.Microsecond,
			UpstreamServiceTime: []byte("11"), UserAgent: []byte("curl/8.5.0"),
			RequestID: []byte("0f5d8b3e-6f0c-4d52-9d4c-1c1f3f9f7f11"), Authority: []byte("reviews:9080"),
			UpstreamHost: netip.MustParseAddrPort("10.0.0.7:9080"), UpstreamCluster: "outbound|9080||reviews.default.svc.cluster.local",
			UpstreamLocal: netip.MustParseAddrPort("10.0.0.5:41000"), DownstreamLocal: netip.MustParseAddrPort("10.96.0.9:9080"),
			DownstreamRemote: netip.MustParseAddrPort("10.0.0.5:51000"), RouteName: "default",
		}, `[2026-11-21T00:02:03.045Z] "GET /reviews/1?x=y HTTP/1.1" 200 - via_upstream - "-" 0 379 12 11 "-" "curl/8.5.0" "0f5d8b3e-6f0c-4d52-9d4c-1c1f3f9f7f11" "reviews:9080" "10.0.0.7:9080" outbound|9080||reviews.default.svc.cluster.local 10.0.0.5:41000 10.96.0.9:9080 10.0.0.5:51000 - default` + "\n"},
		{"tcp", Entry{
			Start: start, BytesReceived: 5, BytesSent: 6, Duration: time.Second,
			UpstreamHost: netip.MustParseAddrPort("[fd00::1]:5432"), UpstreamCluster: "inbound|5432||",
			UpstreamLocal: netip.MustParseAddrPort("127.0.0.6:3"), DownstreamLocal: netip.MustParseAddrPort("10.0.0.7:5432"),
			DownstreamRemote: netip.MustParseAddrPort("10.0.0.5:2"), ServerName: "outbound_.5432_._.db.default.svc.cluster.local",
		}, `[2026-11-21T00:02:03.045Z] "- - -" 0 - - - "-" 5 6 1000 - "-" "-" "-" "-" "[fd00::1]:5432" inbound|5432|| 127.0.0.6:3 10.0.0.7:5432 10.0.0.5:2 outbound_.5432_._.db.default.svc.cluster.local -` + "\n"},
		{"failure", Entry{
			Start: start, Method: []byte("POST"), Path: []byte("/"), Protocol: "HTTP/2", Code: 503, Flags: "UF,URX",
			Details:          "upstream_reset_before_response_started{connection failure}",
			TransportFailure: "delayed connect error: Connection refused", Termination: "a b",
		}, `[2026-11-21T00:02:03.045Z] "POST / HTTP/2" 503 UF,URX upstream_reset_before_response_started{connection_failure} a_b "delayed connect error: Connection refused" 0 0 0 - "-" "-" "-" "-" "-" - - - - - -` + "\n"},
		{"forgery", Entry{
			Start: start, Method: []byte("GET"), Path: []byte("/\" 200 \\\n["), Protocol: "HTTP/1.1", UserAgent: []byte("a\x00\x7f\xffé"), ServerName: "x y\n",
		}, `[2026-11-21T00:02:03.045Z] "GET /\" 200 \\\x0a[ HTTP/1.1" 0 - - - "-" 0 0 0 - "-" "a\x00\x7f` + "\xffé" + `" "-" "-" "-" - - - - x_y\x0a -` + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s sink
			l := NewLog(&s)
			l.Write(&test.entry)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got := s.text(); got != test.want {
				t.Errorf("got\n%swant\n%s", got, test.want)
			}
			if !s.closed {
				t.Error("Close did not close the file")
			}
		})
	}
}

func TestEntryIsWrittenWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sink
		l := NewLog(&s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(time.Hour) // an idle log must not write anything
		l.Write(&Entry{Start: time.Now()})
		time.Sleep(500 * time.Millisecond)
		l.Write(&Entry{Start: time.Now()})
		if s.count() != 0 {
			t.Error("written at once, want entries to be gathered")
		}
		time.Sleep(500*time.Millisecond + time.Nanosecond)
		synctest.Wait()
		if got := strings.Count(s.text(), "\n"); got != 2 || s.count() != 1 {
			t.Errorf("%d entries in %d writes after a second, want 2 in 1", got, s.count())
		}
		l.Write(&Entry{Start: time.Now()})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := strings.Count(s.text(), "\n"); got != 3 {
			t.Errorf("%d entries at the end, want 3", got)
		}
	})
}

func TestMuchIsWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sink
		l := NewLog(&s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		began := time.Now()
		for range 1000 {
			l.Write(&Entry{Start: began})
		}
		synctest.Wait()
		if len(s.text()) < flushSize || time.Since(began) != 0 {
			t.Errorf("%d bytes written after %v, want %d at once", len(s.text()), time.Since(began), flushSize)
		}
		cancel()
		<-done
	})
}

func TestWriterThatHangsCostsEntriesNotTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sink{block: make(chan struct{})}
		l := NewLog(&s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		const entries = 30_000 // some 3 MB
		for range entries {
			l.Write(&Entry{Start: time.Now()})
		}
		if l.Dropped() == 0 {
			t.Error("nothing was dropped, so memory is not bounded")
		}
		close(s.block)
		cancel()
		<-done
		if got := int64(strings.Count(s.text(), "\n")) + l.Dropped(); got != entries {
			t.Errorf("%d entries written or dropped, want %d", got, entries)
		}
		if len(l.pending)+cap(l.spare) > 2*flushSize {
			t.Errorf("the burst is still in memory: %d bytes", cap(l.spare))
		}
	})
}

func TestFailedWriteIsCounted(t *testing.T) {
	s := sink{fail: errors.New("disk full")}
	l := NewLog(&s)
	l.Write(&Entry{Start: start})
	l.Write(&Entry{Start: start})
	if err := l.Flush(); err == nil {
		t.Error("Flush returned nil although the write failed")
	}
	if l.Dropped() != 2 {
		t.Errorf("Dropped() = %d, want 2", l.Dropped())
	}
	s.fail = nil
	l.Write(&Entry{Start: start})
	if err := l.Close(); err != nil || strings.Count(s.text(), "\n") != 1 {
		t.Errorf("Close() = %v with %q written, want the entry that came after the failure", err, s.text())
	}
}

func TestEntriesOfManyConnectionsDoNotMix(t *testing.T) {
	var s sink
	l := NewLog(&s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				l.Write(&Entry{Start: start, Method: []byte("GET")})
				l.Flush()
			}
		})
	}
	wg.Wait()
	l.Close()
	lines := strings.Split(strings.TrimSuffix(s.text(), "\n"), "\n")
	if len(lines) != 4000 {
		t.Errorf("%d lines, want 4000", len(lines))
	}
	for _, line := range lines {
		if line != lines[0] {
			t.Fatalf("lines differ: %q and %q", line, lines[0])
		}
	}
}

func TestNilLogTakesEverything(t *testing.T) {
	var l *Log
	l.Write(&Entry{})
	if l.Flush() != nil || l.Close() != nil || l.Dropped() != 0 {
		t.Error("a nil log reports trouble")
	}
}

func TestLogsAreOpenedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	s := NewLogs(nil)
	a, err := s.Get(path)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := s.Get(path)
	if a != b {
		t.Error("one path gave two logs")
	}
	if none, err := s.Get(""); none != nil || err != nil {
		t.Errorf("Get(\"\") = %v, %v, want no log and no error", none, err)
	}
	if _, err := s.Get(filepath.Join(path, "below-a-file")); err == nil {
		t.Error("a log that can not be opened gave no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	a.Write(&Entry{Start: start})
	late, err := s.Get(path + ".2")
	if err != nil {
		t.Fatal(err)
	}
	late.Write(&Entry{Start: start})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".2"} {
		if text, err := os.ReadFile(p); err != nil || strings.Count(string(text), "\n") != 1 {
			t.Errorf("%s holds %q, %v, want one entry", p, text, err)
		}
	}
}

func TestLogEntryAllocatesNothing(t *testing.T) {
	l := NewLog(&sink{})
	e := Entry{Start: start, Method: []byte("GET"), Path: []byte("/"), UpstreamHost: netip.MustParseAddrPort("10.0.0.7:9080")}
	l.pending = make([]byte, 0, flushSize)
	if n := testing.AllocsPerRun(100, func() {
		l.pending = l.pending[:0]
		l.Write(&e)
	}); n != 0 {
		t.Errorf("%v allocations per entry, want 0", n)
	}
}

func FuzzEntryIsOneLine(f *testing.F) {
	f.Add([]byte("/a"), []byte("curl"), "sni")
	f.Add([]byte("/\"\n\\"), []byte("\x00\xff"), "a b\t")
	f.Fuzz(func(t *testing.T, path, agent []byte, sni string) {
		var s sink
		l := NewLog(&s)
		l.Write(&Entry{Start: start, Path: path, UserAgent: agent, ServerName: sni})
		l.Close()
		line := s.text()
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Fatalf("not one line: %q", line)
		}
		// Quotes that are not escaped stand only where the format puts them.
		quotes, last := 0, 0
		for i := 0; i < len(line); i++ {
			switch {
			case line[i] == '\\':
				i++
			case line[i] == '"':
				quotes++
				last = i
			case line[i] < ' ' && line[i] != '\n':
				t.Fatalf("control character in %q", line)
			}
		}
		if quotes != 14 {
			t.Fatalf("%d quotes, want 14, in %q", quotes, line)
		}
		if n := strings.Count(line[last+1:], " "); n != 6 {
			t.Fatalf("%d fields behind the last quote, want 6, in %q", n, line)
		}
	})
}
