package flags

import (
	"bufio"
	"context"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-mesh/heddle/internal/proxy/overload"
)

const (
	// gcPercent trades some processor time for memory: an idle proxy's heap is a
	// few megabytes, and there are as many proxies as pods.
	gcPercent = 50
	// defaultLimit is for a process without a container. It is the memory limit of
	// Istio's sidecars.
	defaultLimit = 1 << 30
)

// small makes the runtime economical, unless the environment says otherwise, and
// returns how much memory the process may hold.
func small() (limit int64) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") != "" {
		if n := debug.SetMemoryLimit(-1); n < math.MaxInt64 {
			return n / overload.GCPercent * 100
		}
		return 0 // "off"
	}
	limit = containerLimit()
	debug.SetMemoryLimit(limit / 100 * overload.GCPercent)
	return limit
}

// containerLimit returns what the container's cgroup allows, of either version.
func containerLimit() int64 {
	for _, file := range [...]string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// Version 1 says "no limit" with a number that no machine has.
		const most = 1 << 50
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && n > 0 && n < most {
			return n
		}
	}
	return defaultLimit
}

// Times of forget: when the proxy is ready, when the bustle of the start is over,
// and then whenever the proxy has worked and is at rest again, because work brings
// pages in that rest does not need.
const (
	afterStart = 15 * time.Second
	lookEvery  = 30 * time.Second
	// atRest is the most processor time that a proxy at rest uses in lookEvery,
	// grown the least of new resident memory that makes it worth to forget again.
	atRest = 100 * time.Millisecond
	grown  = 2 << 20
)

// keepSmall calls forget from time to time until ctx ends, beginning when ready
// is closed.
func keepSmall(ctx context.Context, ready <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	forget()
	select {
	case <-ctx.Done():
		return
	case <-time.After(afterStart):
	}
	forget()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	least, last := resident(), used()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := used()
		if now-last < atRest && resident() > least+grown {
			forget()
			least, now = resident(), used()
		}
		last = now
	}
}

// resident is the resident memory of this process in bytes.
func resident() int {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	// size, resident, …, in pages: proc(5)
	words := strings.Fields(string(b))
	if len(words) < 2 {
		return 0
	}
	n, err := strconv.Atoi(words[1])
	if err != nil {
		return 0
	}
	return n * os.Getpagesize()
}

// used is the processor time that this process has taken.
func used() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// forget gives memory back that only the start needed: garbage, and the pages of
// the program file that its initialization read. The latter are most of an idle
// proxy's resident memory. They come back, from the page cache, when they are
// used; only mappings that can not have been written to are dropped.
func forget() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// address range, permissions, offset, device, inode, path
		words := strings.Fields(lines.Text())
		if len(words) != 6 || words[5] != exe || strings.Contains(words[1], "w") {
			continue
		}
		from, to, _ := strings.Cut(words[0], "-")
		begin, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil && end > begin {
			syscall.RawSyscall(unix.SYS_MADVISE, uintptr(begin), uintptr(end-begin), unix.MADV_DONTNEED)
		}
	}
}

// connectionLimit is how many clients fit under the limit of open files: each
// needs a socket, one to its server, and, while bytes stay in the kernel, a pipe
// for a moment.
func connectionLimit() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	const own, most = 256, 1 << 20
	return int(max(64, (min(l.Cur, most)-min(l.Cur, own))/3))
}
