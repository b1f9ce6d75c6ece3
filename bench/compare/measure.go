package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// measure does one round with one subject.
type measure func(ctx context.Context, r *rig, s *subject) (values, error)

// values are a round's results by the keys of columns.
type values map[string]float64

// column is one of a table. added are differences to the subject "direct" of the
// same round.
type column struct {
	key, head string
	format    string
	added     bool
}

func requests() []column {
	return []column{
		{key: "cpu_us", head: "µs/req", format: "%.2f"}, {key: "user_us", head: "user", format: "%.2f"}, {key: "sys_us", head: "sys", format: "%.2f"},
		{key: "per_second", head: "req/s", format: "%.0f"},
		{key: "p50_us", head: "+p50 µs", format: "%.0f", added: true}, {key: "p99_us", head: "+p99 µs", format: "%.0f", added: true},
		{key: "rss_mib", head: "RSS MiB", format: "%.1f"},
	}
}

// throughput is requests without latencies: h2load tells no percentiles.
func throughput() []column {
	return slices.DeleteFunc(requests(), func(c column) bool { return c.added })
}

func megabytes() []column {
	return []column{
		{key: "cpu_us", head: "µs/MB", format: "%.0f"}, {key: "user_us", head: "user", format: "%.0f"}, {key: "sys_us", head: "sys", format: "%.0f"},
		{key: "per_second", head: "MB/s", format: "%.0f"}, {key: "rss_mib", head: "RSS MiB", format: "%.1f"},
	}
}

func memory() []column {
	out := []column{{key: "idle_mib", head: "idle MiB", format: "%.1f"}}
	for _, n := range held() {
		out = append(out, column{key: slope(n), head: fmt.Sprintf("KiB/conn at %d", n), format: "%.2f"})
	}
	return out
}

// held are the numbers of connections that memory is looked at with.
func held() []int { return []int{1000, 8000} }

func slope(n int) string { return fmt.Sprintf("kib_per_conn_%d", n) }

// under measures the processor time of a subject while load runs, after a load
// that is not counted: it fills pools, and tables of the kernel.
func under(ctx context.Context, r *rig, s *subject, load func(context.Context, time.Duration) (sample, error)) (values, error) {
	if _, err := load(ctx, r.o.warm); err != nil {
		return nil, err
	}
	before, err := used(s.procs)
	if err != nil {
		return nil, err
	}
	got, err := load(ctx, r.o.duration)
	if err != nil {
		return nil, err
	}
	after, err := used(s.procs)
	if err != nil {
		return nil, err
	}
	rss, err := resident(s.procs)
	if err != nil {
		return nil, err
	}
	if got.Units == 0 {
		return nil, errors.New("nothing came through")
	}
	u := after.minus(before)
	v := values{
		"cpu_us":     u.total.Seconds() * 1e6 / got.Units,
		"per_second": got.Units / got.Seconds,
		"p50_us":     got.P50, "p99_us": got.P99,
		"rss_mib": float64(rss) / (1 << 20),
	}
	if ticks := u.user + u.sys; ticks > 0 {
		v["user_us"] = v["cpu_us"] * float64(u.user) / float64(ticks)
		v["sys_us"] = v["cpu_us"] * float64(u.sys) / float64(ticks)
	}
	return v, nil
}

// saturated is as many requests as go through some connections.
func saturated(n int) measure {
	return func(ctx context.Context, r *rig, s *subject) (values, error) {
		return under(ctx, r, s, func(ctx context.Context, d time.Duration) (sample, error) {
			// wrk counts in whole seconds.
			seconds := max(1, int(d.Round(time.Second).Seconds()))
			args := []string{"-t1", fmt.Sprintf("-c%d", n), fmt.Sprintf("-d%ds", seconds), "--latency"}
			line, headers, _ := strings.Cut(strings.TrimSpace(request), "\r\n")
			for h := range strings.SplitSeq(headers, "\r\n") {
				args = append(args, "-H", h)
			}
			path := strings.Fields(line)[1]
			out, err := output(exec.CommandContext(ctx, "wrk", append(args, "http://"+s.addr.String()+path)...), r.o.cores.load)
			if err != nil {
				return sample{}, err
			}
			return readWrk(string(out))
		})
	}
}

// multiplexed is as many requests of HTTP/2 as go through some connections, with some
// streams at a time on each; as calls of gRPC, they have a body of the same size.
func multiplexed(n, streams int, grpc bool) measure {
	return func(ctx context.Context, r *rig, s *subject) (values, error) {
		return under(ctx, r, s, func(ctx context.Context, d time.Duration) (sample, error) {
			args := []string{"-t1", fmt.Sprintf("-c%d", n), fmt.Sprintf("-m%d", streams), fmt.Sprintf("-D%d", max(1, int(d.Round(time.Second).Seconds())))}
			line, headers, _ := strings.Cut(strings.TrimSpace(request), "\r\n")
			path := strings.Fields(line)[1]
			if grpc {
				path = "/bench.Items/Get"
				headers = "Host: backend.bench\r\nContent-Type: application/grpc\r\nTE: trailers\r\nUser-Agent: grpc-go/1.85.0\r\nGrpc-Accept-Encoding: gzip"
				file := filepath.Join(r.dir, "message")
				if err := os.WriteFile(file, message(), 0o644); err != nil {
					return sample{}, err
				}
				args = append(args, "-d", file)
			}
			for h := range strings.SplitSeq(headers, "\r\n") {
				if name, value, _ := strings.Cut(h, ": "); name == "Host" {
					h = ":authority: " + value
				}
				args = append(args, "-H", h)
			}
			out, err := output(exec.CommandContext(ctx, "h2load", append(args, "http://"+s.addr.String()+path)...), r.o.cores.load)
			if err != nil {
				return sample{}, err
			}
			return readH2load(string(out))
		})
	}
}

// readH2load reads what h2load prints.
func readH2load(out string) (s sample, err error) {
	took := regexp.MustCompile(`finished in ([\d.]+m?s)`).FindStringSubmatch(out)
	counts := regexp.MustCompile(`(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`).FindStringSubmatch(out)
	codes := regexp.MustCompile(`status codes: (\d+) 2xx`).FindStringSubmatch(out)
	if took == nil || counts == nil || codes == nil {
		return sample{}, fmt.Errorf("h2load's output has no result: %s", out)
	}
	if counts[2] != "0" || counts[4] != "0" {
		return sample{}, fmt.Errorf("h2load: %s", counts[0])
	}
	d, err := time.ParseDuration(took[1])
	if err != nil {
		return sample{}, err
	}
	s.Seconds = d.Seconds()
	s.Units, err = strconv.ParseFloat(codes[1], 64)
	return s, err
}

// readWrk reads what wrk prints.
func readWrk(out string) (s sample, err error) {
	for _, bad := range []string{"Non-2xx", "Socket errors"} {
		if _, rest, found := strings.Cut(out, bad); found {
			line, _, _ := strings.Cut(rest, "\n")
			return sample{}, fmt.Errorf("wrk: %s%s", bad, line)
		}
	}
	number := func(pattern string) (value, unit string) {
		m := regexp.MustCompile(pattern).FindStringSubmatch(out)
		if m == nil {
			err = errors.Join(err, fmt.Errorf("wrk's output has no %s: %s", pattern, out))
			return "0", "s"
		}
		return m[1], m[len(m)-1]
	}
	parse := func(text string) float64 {
		f, perr := strconv.ParseFloat(text, 64)
		err = errors.Join(err, perr)
		return f
	}
	requests, took := number(`(\d+) requests in ([\d.]+s)`)
	s.Units = parse(requests)
	d, perr := time.ParseDuration(took)
	err = errors.Join(err, perr)
	s.Seconds = d.Seconds()
	for _, q := range []struct {
		share string
		to    *float64
	}{{"50%", &s.P50}, {"99%", &s.P99}} {
		text, unit := number(q.share + `\s+([\d.]+)(us|ms|s)`)
		*q.to = parse(text) * map[string]float64{"us": 1, "ms": 1e3, "s": 1e6}[unit]
	}
	return s, err
}

// openLoop is a constant rate of requests.
func openLoop(n, rate int) measure {
	return func(ctx context.Context, r *rig, s *subject) (values, error) {
		return under(ctx, r, s, func(ctx context.Context, d time.Duration) (sample, error) {
			return generate(ctx, r, "worker-open", "-addr", s.addr.String(), "-connections", strconv.Itoa(n), "-rate", strconv.Itoa(rate), "-duration", d.String())
		})
	}
}

// bulk is as many bytes as go through some connections.
func bulk(n int) measure {
	return func(ctx context.Context, r *rig, s *subject) (values, error) {
		return under(ctx, r, s, func(ctx context.Context, d time.Duration) (sample, error) {
			return generate(ctx, r, "worker-bulk", "-addr", s.addr.String(), "-connections", strconv.Itoa(n), "-duration", d.String())
		})
	}
}

// generate runs one of the generators of this program.
func generate(ctx context.Context, r *rig, args ...string) (s sample, err error) {
	cmd, err := again(ctx, args...)
	if err != nil {
		return sample{}, err
	}
	out, err := output(cmd, r.o.cores.load)
	if err != nil {
		return sample{}, err
	}
	return s, json.Unmarshal(out, &s)
}

// Memory is looked at once what happened has settled. A few connections come
// first, so that what the first request brings in is not counted as theirs.
const (
	calm       = 2 * time.Second
	firstConns = 16
)

// connections looks at memory: idle, and what each of many idle connections adds.
func connections(secure bool) measure {
	return func(ctx context.Context, r *rig, s *subject) (values, error) {
		if err := rest(ctx, time.Until(s.since.Add(r.o.settle))); err != nil {
			return nil, err
		}
		idle, err := resident(s.procs)
		if err != nil {
			return nil, err
		}
		v := values{"idle_mib": float64(idle) / (1 << 20)}
		args := []string{"worker-hold", "-addr", s.addr.String()}
		if secure {
			args = append(args, "-certs", r.certs)
		}
		cmd, err := again(ctx, args...)
		if err != nil {
			return nil, err
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		p, err := start(cmd, "hold", r.dir, r.o.cores.load)
		if err != nil {
			return nil, err
		}
		defer p.stop()
		with := func(n int) (int64, error) {
			if _, err := fmt.Fprintln(in, n); err != nil {
				return 0, errors.Join(err, p.failure())
			}
			if _, err := copyLine(out); err != nil {
				<-p.done
				return 0, errors.Join(err, p.failure())
			}
			if err := rest(ctx, calm); err != nil {
				return 0, err
			}
			return resident(s.procs)
		}
		first, err := with(firstConns)
		if err != nil {
			return nil, err
		}
		for _, n := range held() {
			if 2*n+200 > descriptors() {
				continue // not on this machine: a proxy needs two for each
			}
			now, err := with(n)
			if err != nil {
				return nil, err
			}
			v[slope(n)] = float64(now-first) / 1024 / float64(n-firstConns)
		}
		_ = in.Close() // it ends
		return v, nil
	}
}

// descriptors is how many files a process may have open.
func descriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return int(min(l.Cur, 1<<30))
}
