// Command compare measures Heddle's data plane beside other proxies, on one
// machine and in one run, so that the result is a ratio and not a number of this
// machine.
//
//	go run ./bench/compare -bin bin
//
// All proxies of a scenario run at the same time, pinned to one core, and are
// loaded one after the other, round by round, by one generator; backend and
// generator are pinned to another core. What counts is the processor time of the
// proxies for each unit of work. A ratio is made of two proxies' values of one
// round; the median of the rounds is reported with its spread, since a machine
// that is busy with something else shifts both sides of a round alike.
//
// The table of scenarios is in scenario.go, and what a round does in measure.go.
// The program starts itself again for backend and generators (worker.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// options are what the user says.
type options struct {
	rounds   int
	duration time.Duration // of one measurement
	warm     time.Duration // before it
	settle   time.Duration // before memory is looked at the first time
	bin      string        // directory of heddled and heddle-proxy
	out      string        // directory of the results
	only     *regexp.Regexp
	install  bool
	keep     bool
	note     string
	cores    cores
}

func main() {
	if len(os.Args) > 1 {
		if work := worker(os.Args[1]); work != nil {
			exit(work(os.Args[2:]))
		}
	}
	var o options
	only := "."
	flag.IntVar(&o.rounds, "rounds", 5, "how often everything is measured")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "how long one measurement takes")
	flag.DurationVar(&o.warm, "warm", 500*time.Millisecond, "load before a measurement that is not counted")
	flag.DurationVar(&o.settle, "settle", 17*time.Second, "rest before memory is looked at: Heddle gives back what only its start needed after 15s")
	flag.StringVar(&o.bin, "bin", "bin", "directory of heddled and heddle-proxy")
	flag.StringVar(&o.out, "out", "bench/results", "directory for <scenario>.json")
	flag.StringVar(&only, "run", only, "regular expression for the names of scenarios")
	flag.BoolVar(&o.install, "install", os.Geteuid() == 0, "install missing peers and generators from Debian")
	flag.BoolVar(&o.keep, "keep", false, "keep the configurations and logs of the processes")
	flag.StringVar(&o.note, "note", "", "remark for the results")
	flag.IntVar(&o.cores.proxy, "proxy-core", 0, "core of the proxies")
	flag.IntVar(&o.cores.load, "load-core", 1, "core of generator and backend")
	list := flag.Bool("list", false, "list the scenarios")
	flag.Parse()
	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		exit(err)
	}
	if *list {
		for _, s := range scenarios() {
			fmt.Printf("%-14s %s\n", s.name, s.title)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	exit(compare(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// compare runs the scenarios one after the other. One that fails does not keep
// the others from running.
func compare(ctx context.Context, o options) error {
	if o.install {
		if err := install(ctx); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, s := range scenarios() {
		if !o.only.MatchString(s.name) || ctx.Err() != nil {
			continue
		}
		rep, err := run(ctx, o, s)
		if err != nil {
			fmt.Fprintf(os.Stderr, "compare: %s: %v\n", s.name, err)
			errs = append(errs, fmt.Errorf("%s failed", s.name))
			continue
		}
		rep.print(os.Stdout)
		if err := rep.write(filepath.Join(o.out, s.name+".json")); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, ctx.Err())...)
}

// run measures one scenario.
func run(ctx context.Context, o options, s scenario) (*report, error) {
	rounds := o.rounds
	if s.rounds > 0 {
		rounds = min(rounds, s.rounds)
	}
	rep := newReport(o, s)
	rig, err := newRig(ctx, o)
	if err != nil {
		return nil, err
	}
	defer rig.close()
	var started []*subject
	end := func() {
		for _, sub := range started {
			sub.stop()
		}
		started = nil
	}
	defer end()
	for round := range rounds {
		if started == nil {
			if started, err = rig.startAll(ctx, s); err != nil {
				return nil, err
			}
		}
		// Each round begins with another one, so that none always follows the same.
		order := slices.Concat(started[round%len(started):], started[:round%len(started)])
		for _, sub := range order {
			v, err := s.measure(ctx, rig, sub)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", sub.name, err)
			}
			rep.add(sub.name, v)
		}
		if s.fresh {
			end()
		}
	}
	return rep, nil
}
