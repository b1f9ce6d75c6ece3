package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLogTail(t *testing.T) {
	l, done := startLog(t)
	defer done()
	for i := range 5 {
		fmt.Fprintf(l.w, "line %d\n", i)
	}
	waitFor(t, func() bool { size, _, _, _ := l.state(); return size == 5*7 })
	for tail, want := range map[int]string{
		-1: "line 0\nline 1\nline 2\nline 3\nline 4\n",
		0:  "",
		2:  "line 3\nline 4\n",
		9:  "line 0\nline 1\nline 2\nline 3\nline 4\n",
	} {
		var b bytes.Buffer
		if err := l.copyTo(t.Context(), &b, tail, false); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("tail %d = %q, want %q", tail, b.String(), want)
		}
	}
}

// Whoever follows a log sees every line once, while the file is replaced.
func TestFollowingALogAcrossItsTurns(t *testing.T) {
	l, done := startLog(t)
	defer done()
	line := strings.Repeat("x", 1<<20-10)
	var b lockedBuffer
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.copyTo(context.Background(), &b, 0, true); err != nil {
			t.Error(err)
		}
	})
	const lines = 40
	for i := range lines {
		fmt.Fprintf(l.w, "%08d %s\n", i, line)
		want := int64(i+1) << 20
		waitFor(t, func() bool { return b.len() >= want })
	}
	l.close()
	wg.Wait()
	got := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(got) != lines {
		t.Fatalf("%d lines, want %d", len(got), lines)
	}
	for i, s := range got {
		if !strings.HasPrefix(s, fmt.Sprintf("%08d ", i)) {
			t.Fatalf("line %d begins with %q", i, s[:9])
		}
	}
	if info, err := os.Stat(l.path + ".1"); err != nil || info.Size() < maxLog {
		t.Errorf("the predecessor: %v, %v", info, err)
	}
}

func startLog(t *testing.T) (*logFile, func()) {
	t.Helper()
	l, err := openLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(l.run)
	return l, func() { l.close(); wg.Wait() }
}

// waitFor polls a condition that other goroutines bring about.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		if !sleep(ctx, time.Millisecond) {
			t.Fatal("it did not happen in time")
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) len() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.b.Len())
}
